/*
 * The pull protocol of parcels: owners, the ranks of one reader group, a lossy network, leases, crashes and restarts.
 * What is checked, under which bounds, and where each step lives in the code: README.md. Run it with ./check.
 *
 * Each macro MUTANT_* takes one rule of the protocol away; with any of them the check must fail.
 */
#ifndef OWNERS
#define OWNERS 2
#endif
#define READERS 2 /* ALL_DONE and its like are written for two */
#ifndef OWNER_CRASHES
#define OWNER_CRASHES 1 /* each is followed by a restart as the next incarnation */
#endif
#ifndef READER_CRASHES
#define READER_CRASHES 1
#endif
#ifndef LOSSES
#define LOSSES 1 /* frames that never arrive */
#endif
#ifndef CUTS
#define CUTS 1 /* sessions of living readers that an owner takes for dead */
#endif
#ifndef RELEASES
#define RELEASES 1 /* forced releases and aborts, by the proxy or the owner */
#endif
#define SPANS 2 /* read one after another; anything may happen between two */
#define LINKS (OWNERS * READERS)
#define LINK(o, r) ((o) * READERS + (r))

/* refused: "gone" in answer to a claim. An answer names what it answers: a late one to a repeated claim must not be
   taken for the verdict. */
mtype = { claim, settle, settle_oneway, release, ticket, refused, valid, stale, gone };

/* Parcel at the owner. ENDING: between the two steps of giving the blocks back. */
#define ANNOUNCED 0
#define LIVE 1
#define ENDING 2
#define ENDED 3

/* Claim at the owner. */
#define NO_CLAIM 0
#define WAITING 1
#define GRANTED 2
#define SETTLED 3
#define FAILED 4

/* Claim at the reader. READING counts the spans that were read. */
#define IDLE 0
#define CLAIMING 1
#define READING 2
#define SETTLING (READING + SPANS)
#define OVER (SETTLING + 1) /* accepted, refused, or given up at the deadline: the outcome is out */
#define IS_READING(s) ((s) >= READING && (s) < SETTLING)
#define IS_OVER(s) ((s) == OVER)

#define POISON 0 /* what the next user of the blocks writes; a life's own KV is its incarnation */

/* What a reader's fabric can see of an owner: the blocks, the word in the gate, and who lives there. */
byte memory[OWNERS];
byte generation[OWNERS]; /* 0 before publish; starts at 1 in every life, on purpose; 2 has moved */
byte incarnation[OWNERS];

/* The owner's own. */
byte parcel[OWNERS];
bit asked[OWNERS]; /* a reader released, unforced: takes effect after the last live claim */
byte given_back[OWNERS];
byte at_owner[LINKS];   /* claim */
byte claim_life[LINKS]; /* incarnation of the reader that holds it */
mtype kept[LINKS];      /* the verdict on that claim, 0: none yet */
byte kept_life[LINKS];

/* The readers'. */
byte life[READERS]; /* incarnation */
byte at_reader[LINKS];
byte wanted[LINKS]; /* the owner's incarnation that the claim names */
byte told[LINKS];   /* generation in the ticket */
bit wrong[LINKS];   /* ghost: something was copied that the wanted incarnation has not published */
bit retried[LINKS];

byte owner_crashes = OWNER_CRASHES;
byte reader_crashes = READER_CRASHES;
byte losses = LOSSES;
byte cuts = CUTS;
byte releases = RELEASES;

/* One slot each way per pair. Frames: kind, incarnation of the owner, of the reader, generation. */
/* SMALL makes two owners tractable: a request is handled as it is sent (its answer still takes time and may be lost), a
   rank goes to its owners in turn, each pair has one form of verdict, and readers give up silently. */
#ifdef SMALL
chan up[LINKS] = [0] of { mtype, byte, byte, byte };
#define CAN_SEND(l) (empty(down[l]))
#define NOTHING_ON_THE_WAY(l) (empty(down[l]))
#define MY_TURN(o, r) (o == 0 || IS_OVER(at_reader[LINK(o - 1, r)]))
#define BY_WIRE(o, r) ((o + r) % 2 == 0)
#define BY_GATE(o, r) ((o + r) % 2 == 1)
#define TELLS false
#else
chan up[LINKS] = [1] of { mtype, byte, byte, byte };
#define CAN_SEND(l) (nfull(up[l]))
#define NOTHING_ON_THE_WAY(l) (empty(up[l]) && empty(down[l]))
#define MY_TURN(o, r) true
#define BY_WIRE(o, r) true
#define BY_GATE(o, r) true
#define TELLS true /* a reader that gives up sends a release */
#endif
chan down[LINKS] = [1] of { mtype, byte, byte, byte };

#ifdef MUTANT_NO_INCARNATION
#define SAME(a, b) (true)
#else
#define SAME(a, b) ((a) == (b))
#endif

inline transmit(channel, kind, life_o, life_r, gen) {
  if
  :: channel ! kind(life_o, life_r, gen)
  :: losses > 0 -> losses--
  fi
}

inline drain(channel) {
  do
  :: channel ? _, _, _, _
  :: empty(channel) -> break
  od
}

/* ---------------------------------------------------------------- the owner's table of parcels */

#define DONE_WITH(l) (at_owner[l] == SETTLED || at_owner[l] == FAILED)
#ifdef MUTANT_EAGER
#define ALL_DONE(o) (DONE_WITH(LINK(o, 0)) || DONE_WITH(LINK(o, 1)))
#else
#define ALL_DONE(o) (DONE_WITH(LINK(o, 0)) && DONE_WITH(LINK(o, 1)))
#endif
#define LIVE_CLAIM(o) (at_owner[LINK(o, 0)] == GRANTED || at_owner[LINK(o, 1)] == GRANTED)
#define ONE_FAILED(o) (at_owner[LINK(o, 0)] == FAILED || at_owner[LINK(o, 1)] == FAILED)
#define READS(o, r)                                                                                       \
  (IS_READING(at_reader[LINK(o, r)]) && wanted[LINK(o, r)] == incarnation[o] &&                           \
   at_owner[LINK(o, r)] != FAILED)

/* Forgets what can matter no more, so that histories which differ only in it become one state. */
inline retire(o, l) {
#ifdef SMALL
  if
  :: parcel[o] == ENDED && IS_OVER(at_reader[l]) ->
     at_owner[l] = NO_CLAIM; claim_life[l] = 0; kept[l] = 0; kept_life[l] = 0; asked[o] = 0
  :: else
  fi
#else
  skip
#endif
}

/* The parcel ends. The generation moves, only then are the blocks given back: two steps, and readers go on reading,
   and looking at the gate, between them. */
inline begin_end(o) {
#ifdef MUTANT_FREE_FIRST
  memory[o] = POISON; given_back[o]++;
#else
  generation[o] = 2;
#endif
  parcel[o] = ENDING
}

inline finish_end(o) {
#ifdef MUTANT_FREE_FIRST
  generation[o] = 2;
#else
  memory[o] = POISON; given_back[o]++;
#endif
  parcel[o] = ENDED;
  assert(given_back[o] == 1); /* I2: exactly once */
  retire(o, LINK(o, 0));
  retire(o, LINK(o, 1))
}

inline owner_restarts(o) {
  owner_crashes--;
  incarnation[o]++;
  memory[o] = POISON; generation[o] = 0; parcel[o] = ANNOUNCED; asked[o] = 0; given_back[o] = 0;
  i = 0;
  do
  :: i < READERS ->
     at_owner[LINK(o, i)] = NO_CLAIM; claim_life[LINK(o, i)] = 0;
     kept[LINK(o, i)] = 0; kept_life[LINK(o, i)] = 0;
#ifndef SMALL
     drain(up[LINK(o, i)]);
#endif
     drain(down[LINK(o, i)]);
     i++
  :: else -> break
  od;
  i = 0
}

proctype Owner(byte o) {
  byte i;
end:
  do
  :: d_step { parcel[o] == ANNOUNCED && !asked[o] -> /* publish */
       memory[o] = incarnation[o]; generation[o] = 1; parcel[o] = LIVE }
  :: d_step { parcel[o] == ANNOUNCED && asked[o] -> parcel[o] = ENDED } /* publish meets a tombstone */
  :: d_step { parcel[o] == ANNOUNCED && releases > 0 -> releases--; parcel[o] = ENDED } /* abort */
  :: d_step { parcel[o] == LIVE && releases > 0 -> releases--; begin_end(o) } /* forced release */
#ifndef MUTANT_NO_EXPIRY
  :: d_step { parcel[o] == LIVE -> begin_end(o) } /* expire: the lease may end at any time */
#endif
  :: d_step { parcel[o] == LIVE && (ALL_DONE(o) || (!LIVE_CLAIM(o) && (asked[o] || ONE_FAILED(o)))) ->
       assert(!READS(o, 0) && !READS(o, 1)); /* I2: nobody of the group is in the middle of a read */
       begin_end(o) }
  :: d_step { parcel[o] == ENDING -> finish_end(o) }
  :: d_step { owner_crashes > 0 -> owner_restarts(o) }
  od
}

/* ---------------------------------------------------------------- the owner's table of claims, one pair */

/* answer stays 0 while the claim waits. */
inline take_claim(o, l, life_o, life_r) {
  if
  :: !SAME(life_o, incarnation[o]) || parcel[o] >= ENDING ||
     (DONE_WITH(l) && SAME(claim_life[l], life_r)) -> answer = refused
  :: else ->
     claim_life[l] = life_r; /* the first, a repeated one, or a new incarnation that replaces the old */
     if
     :: parcel[o] == LIVE -> at_owner[l] = GRANTED; answer = ticket
     :: else -> at_owner[l] = WAITING
     fi
  fi
}

inline decide(l, verdict) {
  kept[l] = verdict; kept_life[l] = claim_life[l]; answer = verdict
}

#ifdef MUTANT_FORGETS
#define IS_KEPT(l, life_r) (false)
#else
#define IS_KEPT(l, life_r) (kept[l] != 0 && SAME(kept_life[l], life_r))
#endif

inline judge(o, l, life_o, life_r, gen) {
  if
  :: !SAME(life_o, incarnation[o]) -> answer = gone
  :: else ->
     if
     :: IS_KEPT(l, life_r) -> answer = kept[l]
     :: else ->
        if
        :: at_owner[l] == GRANTED && SAME(claim_life[l], life_r) ->
           if
           :: gen == generation[o] -> at_owner[l] = SETTLED; decide(l, valid)
           :: else -> at_owner[l] = FAILED; decide(l, stale)
           fi
        :: else -> answer = gone
        fi
     fi
  fi
}

proctype Desk(byte o; byte r) {
  mtype kind, answer;
  byte life_o, life_r, gen;
  byte l = LINK(o, r);
end:
  do
  :: atomic { at_owner[l] == WAITING && (parcel[o] == LIVE || parcel[o] == ENDED) && nfull(down[l]) ->
       if
       :: parcel[o] == LIVE -> at_owner[l] = GRANTED; answer = ticket
       :: else -> at_owner[l] = FAILED; answer = refused
       fi;
       transmit(down[l], answer, incarnation[o], claim_life[l], generation[o]);
       answer = 0
     }
     /* The session stayed dead beyond the grace: the reader is dead, or cut off. It will hear stale. */
  :: d_step { (at_owner[l] == GRANTED || at_owner[l] == WAITING) && claim_life[l] != life[r] ->
       at_owner[l] = FAILED; decide(l, stale); answer = 0 }
  :: d_step { (at_owner[l] == GRANTED || at_owner[l] == WAITING) && claim_life[l] == life[r] && cuts > 0 ->
       cuts--; at_owner[l] = FAILED; decide(l, stale); answer = 0 }
#ifdef SMALL
  :: atomic { up[l] ? kind, life_o, life_r, gen ->
#else
  :: atomic { nempty(up[l]) && nfull(down[l]) ->
       up[l] ? kind, life_o, life_r, gen;
#endif
       if
       :: kind == claim -> take_claim(o, l, life_o, life_r)
       :: kind == release ->
          if
          :: SAME(life_o, incarnation[o]) -> asked[o] = 1
          :: else
          fi
       :: else -> judge(o, l, life_o, life_r, gen)
       fi;
       if
       :: answer != 0 && kind != settle_oneway -> transmit(down[l], answer, incarnation[o], life_r, generation[o])
       :: else
       fi;
       kind = 0; answer = 0; life_o = 0; life_r = 0; gen = 0
     }
  od
}

#ifdef MUTANT_REPEATS
#define MAY_REPEAT(l) true
#else
#define MAY_REPEAT(l) (!retried[l])
#endif

/* ---------------------------------------------------------------- the reader, one rank and one owner */

inline finish(o, l, state) {
  told[l] = 0; wrong[l] = 0; retried[l] = 0; at_reader[l] = state;
  retire(o, l)
}

inline accept(o, l) {
  assert(!wrong[l]); /* I1 */
  finish(o, l, OVER)
}

inline reader_restarts(r) {
  reader_crashes--;
  life[r]++;
  i = 0;
  do
  :: i < OWNERS ->
     finish(i, LINK(i, r), IDLE);
     wanted[LINK(i, r)] = 0;
     drain(down[LINK(i, r)]); /* what it sent before may still arrive */
     i++
  :: else -> break
  od;
  i = 0
}

proctype Reader(byte o; byte r) {
  mtype kind;
  byte life_o, life_r, gen, i;
  byte l = LINK(o, r);
end:
  do
  :: atomic { at_reader[l] == IDLE && CAN_SEND(l) && MY_TURN(o, r) ->
       wanted[l] = incarnation[o];
       if
       :: at_reader[l] = CLAIMING; transmit(up[l], claim, wanted[l], life[r], 0)
       :: TELLS -> at_reader[l] = OVER; transmit(up[l], release, wanted[l], life[r], 0) /* never wanted it */
       fi
     }
     /* The frame or its answer was lost: once more, the same claim. */
  :: atomic { at_reader[l] == CLAIMING && MAY_REPEAT(l) && NOTHING_ON_THE_WAY(l) ->
       retried[l] = 1; transmit(up[l], claim, wanted[l], life[r], 0) }
  :: atomic { at_reader[l] == SETTLING && MAY_REPEAT(l) && NOTHING_ON_THE_WAY(l) ->
       retried[l] = 1; transmit(up[l], settle, wanted[l], life[r], told[l]) }

  :: d_step { IS_READING(at_reader[l]) && at_reader[l] < SETTLING - 1 -> /* a span: whatever lies there now */
       wrong[l] = wrong[l] || memory[o] != wanted[l]; at_reader[l]++ }
  :: atomic { at_reader[l] == SETTLING - 1 && CAN_SEND(l) -> /* the last span */
       wrong[l] = wrong[l] || memory[o] != wanted[l]; at_reader[l]++;
       retried[l] = 0
     };
     atomic {
       if
#ifdef MUTANT_NO_SETTLE
       :: at_reader[l] == SETTLING && CAN_SEND(l) ->
          gen = told[l]; accept(o, l); transmit(up[l], settle_oneway, wanted[l], life[r], gen); gen = 0
#else
       :: at_reader[l] == SETTLING && CAN_SEND(l) && BY_WIRE(o, r) -> /* over a wire: ask */
          transmit(up[l], settle, wanted[l], life[r], told[l])
       :: at_reader[l] == SETTLING && CAN_SEND(l) && BY_GATE(o, r) -> /* on one host: look at the gate, then tell */
          gen = told[l];
          if
          :: generation[o] == gen && SAME(incarnation[o], wanted[l]) -> accept(o, l)
          :: else -> finish(o, l, OVER)
          fi;
          transmit(up[l], settle_oneway, wanted[l], life[r], gen); gen = 0
#endif
       :: at_reader[l] != SETTLING /* crashed meanwhile */
       fi
     }

  :: atomic { nempty(down[l]) ->
       down[l] ? kind, life_o, life_r, gen;
       if
       :: !SAME(life_r, life[r]) || !SAME(life_o, wanted[l]) /* for an earlier life */
       :: else ->
          if
          :: at_reader[l] == CLAIMING && kind == ticket -> told[l] = gen; at_reader[l] = READING
          :: at_reader[l] == CLAIMING && kind == refused -> finish(o, l, OVER)
          :: at_reader[l] == SETTLING && kind != ticket && kind != refused ->
             /* One verdict, however often it is asked for: what was settled is not denied. */
             assert(incarnation[o] != wanted[l] || kept_life[l] != life[r] || (kind == valid) == (kept[l] == valid));
             if
             :: kind == valid -> accept(o, l)
             :: else -> finish(o, l, OVER)
             fi
          :: else
          fi
       fi;
       kind = 0; life_o = 0; life_r = 0; gen = 0
     }

#ifndef MUTANT_NO_DEADLINE
  :: atomic { at_reader[l] >= CLAIMING && !IS_OVER(at_reader[l]) && CAN_SEND(l) -> /* the deadline, or cancel */
       finish(o, l, OVER);
       if
       :: TELLS -> transmit(up[l], release, wanted[l], life[r], 0)
       :: skip
       fi
     }
#endif
  :: d_step { o == 0 && reader_crashes > 0 -> reader_restarts(r) }
  od
}

/* I3: when nothing can happen any more, every claim has its outcome and no parcel lives on. */
proctype Judge() {
  byte i;
  timeout;
  i = 0;
  do
  :: i < LINKS -> assert(IS_OVER(at_reader[i])); i++
  :: i >= LINKS -> break
  od;
  i = 0;
  do
  :: i < OWNERS -> assert(parcel[i] == ENDED && memory[i] == POISON); i++
  :: i >= OWNERS -> break
  od
}

init {
  byte o, r;
  atomic {
    for (r : 0 .. READERS - 1) { life[r] = 1 }
    for (o : 0 .. OWNERS - 1) {
      incarnation[o] = 1;
      run Owner(o);
      for (r : 0 .. READERS - 1) {
        run Desk(o, r);
        run Reader(o, r)
      }
    }
    run Judge()
  }
}
