/*
 * The pull protocol of parcels: owners, the ranks of one reader group, sessions that break, leases, crashes and
 * restarts. What is checked, under which bounds, and where each step lives in the code: README.md. Run it with ./check.
 *
 * One process takes every step of everybody: the choice between all that can happen now is the interleaving. What a
 * step does is one d_step; what takes time (a frame on its way, bytes that are copied, a parcel that ends) is state.
 * Each macro MUTANT_* takes one rule of the protocol away; with any of them the check must fail.
 */
#ifndef OWNERS
#define OWNERS 2
#endif
#define READERS 2 /* ranks of the group; ALL_DONE and its like are written for two */
#ifndef OWNER_CRASHES
#define OWNER_CRASHES 0 /* each is followed by a restart as the next incarnation */
#endif
#ifndef READER_CRASHES
#define READER_CRASHES 0
#endif
#ifndef BREAKS
#define BREAKS 0 /* sessions that break, with what is under way in them, and stand again */
#endif
#ifndef CUTS
#define CUTS 0 /* living readers that an owner takes for dead */
#endif
#ifndef RELEASES
#define RELEASES 0 /* forced releases and aborts, by the proxy or the owner */
#endif
#ifndef UNWANTED
#define UNWANTED 0 /* 1: a rank may release instead of reading */
#endif

/* A parcel at its owner. ENDING: between the two steps of giving the blocks back. */
#define ANNOUNCED 0
#define LIVE 1
#define ENDING 2
#define ENDED 3

/* A claim at its owner. The last two are the verdict that is kept, too. */
#define NO_CLAIM 0
#define WAITING 1
#define GRANTED 2
#define SETTLED 3
#define FAILED 4

/* A share at its reader: one rank's part at one owner. OVER: the read has its outcome. */
#define IDLE 0
#define CLAIMING 1
#define PLANNING 2 /* its ticket is here; the read begins when all of this rank's are */
#define READING 3  /* any number of spans, each copied at any moment */
#define SETTLING 4 /* the owner is asked */
#define TRAILING 5 /* the stream's trailer is on its way */
#define ACCEPTED 6 /* the read is, when all of this rank's shares are */
#define OVER 7

/* Frames, from the reader and from the owner. A verdict and a refusal are two: a late answer to a repeated claim must
   not be taken for the verdict. */
#define NOTHING 0
#define CLAIM 1
#define SETTLE 2
#define SETTLE_ONE_WAY 3
#define GIVEN_UP 4
#define RELEASE 5

#define TICKET 1
#define REFUSED 2
#define VALID 3
#define STALE 4
#define GONE 5

#define POISON 0 /* what the next user of the blocks writes; a life's own KV is its incarnation */

typedef Owner {
  unsigned incarnation : 2;
  unsigned parcel : 2;
  unsigned memory : 2; /* the blocks, as a reader's fabric sees them */
  bit in_force;        /* the parcel's word in the gate; generations of two lives are alike on purpose */
  bit asked;           /* a reader released, unforced: takes effect after the last live claim */
  bit given_back
};

/* One reader at one owner: the claim, the share, and the session between them, with one frame each way. */
typedef Link {
  unsigned claim : 3;
  unsigned claimant : 2; /* incarnation of the reader that made it */
  unsigned share : 3;
  unsigned wanted : 2; /* the owner's incarnation that the claim names */
  bit wrong;           /* something was copied that this incarnation has not published */
  unsigned up : 3;     /* to the owner */
  unsigned up_to : 2;  /* the incarnation that it is meant for */
  unsigned up_of : 2;  /* the incarnation that sent it */
  unsigned late : 3;   /* the same, of the session of a reader that has crashed */
  unsigned late_to : 2;
  unsigned late_of : 2;
  unsigned down : 3; /* to the reader */
  unsigned down_of : 2
};

typedef Row { Link at[READERS] };

Owner owner[OWNERS];
Row link[OWNERS];
byte life[READERS]; /* incarnations */
byte owner_crashes = OWNER_CRASHES;
byte reader_crashes = READER_CRASHES;
byte breaks = BREAKS;
byte cuts = CUTS;
byte releases = RELEASES;
hidden byte answer, frame, from, meant_for, each, was_seen; /* within a step */

#define AT(o, r) link[o].at[r]

/* How the bytes of a pair come, and the verdict with them: copied behind the owner's gate; copied, and asked for because
   of a digest; as a stream. Two owners: one rank has the first and the second, the other reads streams. One: each pair
   has each form. */
#if OWNERS == 2
#define BY_GATE(o, r) (r == 0 && o == 0)
#define BY_ASKING(o, r) (r == 0 && o == 1)
#define BY_STREAM(o, r) (r == 1)
#define BEGINS_ALONE(r) (r == 1) /* nothing to plan: layouts were known */
#define EACH_SHARE(r, what) what(0, r) && what(1, r)
#define ANY_SHARE(r, what) (what(0, r) || what(1, r))
#else
#define BY_GATE(o, r) true
#define BY_ASKING(o, r) true
#define BY_STREAM(o, r) true
#define BEGINS_ALONE(r) true
#define EACH_SHARE(r, what) what(0, r)
#define ANY_SHARE(r, what) what(0, r)
#endif

#ifdef MUTANT_NO_INCARNATION
#define SAME(a, b) true
#else
#define SAME(a, b) ((a) == (b))
#endif

/* ---------------------------------------------------------------- frames */

inline send_up(o, r, what) {
  AT(o, r).up = what; AT(o, r).up_to = AT(o, r).wanted; AT(o, r).up_of = life[r]
}

/* To a life that is over, or a read, nobody listens. */
inline send_down(o, r, what, receiver) {
  if
  :: receiver == life[r] && AT(o, r).share != OVER ->
     AT(o, r).down = what; AT(o, r).down_of = owner[o].incarnation
  :: else
  fi
}

inline lose_up(o, r) {
  AT(o, r).up = NOTHING; AT(o, r).up_to = 0; AT(o, r).up_of = 0
}

inline lose_down(o, r) {
  AT(o, r).down = NOTHING; AT(o, r).down_of = 0
}

/* Forgets what can matter no more, so that histories which differ only in it become one state: the claim of a read that
   is over, once nothing of it is on its way and its parcel has ended. */
inline retire(o, r) {
  if
  :: AT(o, r).share == OVER && AT(o, r).up == NOTHING && AT(o, r).late == NOTHING &&
     (AT(o, r).claim == SETTLED || AT(o, r).claim == FAILED) ->
     AT(o, r).claimant = 0;
     if
     :: owner[o].parcel == ENDED -> AT(o, r).claim = NO_CLAIM
     :: else
     fi
  :: else
  fi
}

/* ---------------------------------------------------------------- parcels, at their owners */

#define DONE(o, r) (AT(o, r).claim == SETTLED || AT(o, r).claim == FAILED)
#ifdef MUTANT_EAGER
#define ALL_DONE(o) (DONE(o, 0) || DONE(o, 1))
#else
#define ALL_DONE(o) (DONE(o, 0) && DONE(o, 1))
#endif
#define ONE_FAILED(o) (AT(o, 0).claim == FAILED || AT(o, 1).claim == FAILED)
#define ONE_READS(o) (AT(o, 0).claim == GRANTED || AT(o, 1).claim == GRANTED)
#define IS_COPYING(o, r)                                                                                        \
  (AT(o, r).share == READING && AT(o, r).wanted == owner[o].incarnation && AT(o, r).claim != FAILED)
#ifdef MUTANT_EAGER
#define MUST_END(o) (ALL_DONE(o) || owner[o].asked)
#else
#define MUST_END(o) (!ONE_READS(o) && (ALL_DONE(o) || ONE_FAILED(o) || owner[o].asked))
#endif

inline fill(o, what) {
  owner[o].memory = what;
  each = 0;
  do
  :: each < READERS ->
     if
     :: AT(o, each).share == READING && AT(o, each).wanted != what -> AT(o, each).wrong = 1
     :: else
     fi;
     each++
  :: else -> break
  od;
  each = 0
}

inline publish(o) {
  fill(o, owner[o].incarnation);
  owner[o].in_force = 1; owner[o].parcel = LIVE
}

inline give_back(o) {
  assert(!owner[o].given_back); /* I2: exactly once */
  owner[o].given_back = 1;
  fill(o, POISON) /* whoever gets the blocks writes at once */
}

/* The parcel ends. The generation moves, only then are the blocks given back: two steps, and readers go on reading,
   and looking at the gate, between them. */
inline begin_end(o) {
#ifdef MUTANT_FREE_FIRST
  give_back(o);
#else
  owner[o].in_force = 0;
#endif
  owner[o].parcel = ENDING
}

inline finish_end(o) {
#ifdef MUTANT_FREE_FIRST
  owner[o].in_force = 0;
#else
  give_back(o);
#endif
  bury(o)
}

inline bury(o) {
  owner[o].parcel = ENDED; owner[o].asked = 0;
  retire(o, 0); retire(o, 1)
}

inline review(o) {
  assert(!IS_COPYING(o, 0) && !IS_COPYING(o, 1)); /* I2: nobody of the group is in the middle of a read */
  begin_end(o)
}

inline owner_restarts(o) {
  owner_crashes--;
  owner[o].incarnation++;
  fill(o, POISON);
  owner[o].in_force = 0; owner[o].asked = 0; owner[o].given_back = 0; owner[o].parcel = ANNOUNCED;
  each = 0;
  do
  :: each < READERS ->
     AT(o, each).claim = NO_CLAIM; AT(o, each).claimant = 0;
     lose_up(o, each); lose_down(o, each);
     AT(o, each).late = NOTHING; AT(o, each).late_of = 0; AT(o, each).late_to = 0;
     each++
  :: else -> break
  od;
  each = 0
}

/* ---------------------------------------------------------------- claims, at their owners */

inline take_claim(o, r) {
  if
  :: !SAME(meant_for, owner[o].incarnation) || owner[o].parcel >= ENDING || (DONE(o, r) && SAME(AT(o, r).claimant, from)) -> answer = REFUSED
  :: else -> /* the first, a repeated one, or a new incarnation that replaces the old */
     AT(o, r).claimant = from;
     if
     :: owner[o].parcel == LIVE -> AT(o, r).claim = GRANTED; answer = TICKET
     :: else -> AT(o, r).claim = WAITING
     fi
  fi
}

#ifdef MUTANT_FORGETS
#define IS_KEPT(o, r) false
#else
#define IS_KEPT(o, r) DONE(o, r)
#endif

inline take_settle(o, r) {
  if
  :: !SAME(meant_for, owner[o].incarnation) || !SAME(AT(o, r).claimant, from) -> answer = GONE
  :: else ->
     if
     :: AT(o, r).claim == GRANTED && owner[o].in_force -> AT(o, r).claim = SETTLED; answer = VALID
     :: AT(o, r).claim == GRANTED && !owner[o].in_force -> AT(o, r).claim = FAILED; answer = STALE
     :: AT(o, r).claim != GRANTED && IS_KEPT(o, r) -> answer = (AT(o, r).claim == SETTLED -> VALID : STALE)
     :: AT(o, r).claim != GRANTED && !IS_KEPT(o, r) -> answer = GONE
     fi
  fi
}

/* A claim that waits leaves no trace; a rank that had a ticket has failed. */
inline fail_claim(o, r) {
  if
  :: AT(o, r).claim == WAITING -> AT(o, r).claim = NO_CLAIM; AT(o, r).claimant = 0
  :: AT(o, r).claim == GRANTED -> AT(o, r).claim = FAILED
  :: else
  fi;
  retire(o, r)
}

inline take_frame(o, r) {
  frame = AT(o, r).up; from = AT(o, r).up_of; meant_for = AT(o, r).up_to;
  lose_up(o, r);
  handle(o, r)
}

inline take_late_frame(o, r) {
  frame = AT(o, r).late; from = AT(o, r).late_of; meant_for = AT(o, r).late_to;
  AT(o, r).late = NOTHING; AT(o, r).late_of = 0; AT(o, r).late_to = 0;
  handle(o, r)
}

inline handle(o, r) {
  answer = NOTHING;
  if
  :: frame == CLAIM -> take_claim(o, r)
  :: frame == SETTLE -> take_settle(o, r)
  :: frame == SETTLE_ONE_WAY -> take_settle(o, r); answer = NOTHING
  :: frame == GIVEN_UP && SAME(meant_for, owner[o].incarnation) && SAME(AT(o, r).claimant, from) -> fail_claim(o, r)
  :: frame == RELEASE && SAME(meant_for, owner[o].incarnation) && owner[o].parcel < ENDING -> owner[o].asked = 1
  :: else
  fi;
  if
  :: answer != NOTHING -> send_down(o, r, answer, from)
  :: else
  fi;
  retire(o, r)
}

/* The parcel for which the claim has waited is there, or never will be. */
inline answer_waiting(o, r) {
  from = AT(o, r).claimant;
  if
  :: owner[o].parcel == LIVE -> AT(o, r).claim = GRANTED; answer = TICKET
  :: else -> AT(o, r).claim = NO_CLAIM; AT(o, r).claimant = 0; answer = REFUSED
  fi;
  send_down(o, r, answer, from)
}

/* Nobody stands behind the claim any more: its session stayed dead, or came back without asking for it. */
#define IS_LOST(o, r)                                                                                           \
  (AT(o, r).claimant != life[r] || (AT(o, r).share == OVER && AT(o, r).up == NOTHING))

/* The trailer of a stream leaves, behind the last byte: it is the verdict. Streams end with their parcel, whatever has
   become of the claim. */
inline end_stream(o, r) {
  if
#ifdef MUTANT_TRAILER
  :: true -> answer = VALID
#endif
  :: owner[o].in_force && SAME(AT(o, r).wanted, owner[o].incarnation) -> answer = VALID
  :: else -> answer = STALE
  fi;
  AT(o, r).share = TRAILING;
  send_down(o, r, answer, life[r])
}

/* ---------------------------------------------------------------- readers */

#define IS_FREE(o, r) (AT(o, r).share == IDLE)
#define HAS_TICKET(o, r) (AT(o, r).share == PLANNING)
#define IS_ACCEPTED(o, r) (AT(o, r).share == ACCEPTED)
#define UNDER_WAY(o, r) (AT(o, r).share >= CLAIMING && AT(o, r).share < ACCEPTED)

inline share_is_over(o, r) {
  AT(o, r).share = OVER; AT(o, r).wanted = 0; AT(o, r).wrong = 0;
  lose_down(o, r);
  retire(o, r)
}

/* The read has its outcome. Owners that may wait for this rank are told if the frame finds room. */
inline end_read(r) {
  each = 0;
  do
  :: each < OWNERS ->
     if
     :: UNDER_WAY(each, r) && AT(each, r).up == NOTHING -> send_up(each, r, GIVEN_UP)
     :: else
     fi;
     share_is_over(each, r);
     each++
  :: else -> break
  od;
  each = 0
}

inline accept_share(o, r) {
  assert(!AT(o, r).wrong); /* I1 */
  AT(o, r).share = ACCEPTED;
  if
  :: EACH_SHARE(r, IS_ACCEPTED) -> end_read(r)
  :: else
  fi
}

inline claim_share(o, r) {
  AT(o, r).wanted = owner[o].incarnation; AT(o, r).share = CLAIMING;
  send_up(o, r, CLAIM)
}

inline release_unread(o, r) {
  AT(o, r).wanted = owner[o].incarnation;
  send_up(o, r, RELEASE);
  share_is_over(o, r)
}

inline claim_all(r) {
  each = 0;
  do
  :: each < OWNERS -> claim_share(each, r); each++
  :: else -> break
  od;
  each = 0
}

inline want_none(r) {
  each = 0;
  do
  :: each < OWNERS -> release_unread(each, r); each++
  :: else -> break
  od;
  each = 0
}

inline begin_reading(o, r) {
  AT(o, r).share = READING; AT(o, r).wrong = (AT(o, r).wanted != owner[o].memory)
}

inline take_ticket(o, r) {
  AT(o, r).share = PLANNING;
  if
  :: BEGINS_ALONE(r) -> begin_reading(o, r)
  :: !BEGINS_ALONE(r) && EACH_SHARE(r, HAS_TICKET) ->
     each = 0;
     do
     :: each < OWNERS -> begin_reading(each, r); each++
     :: else -> break
     od
  :: else
  fi
}

inline take_answer(o, r) {
  frame = AT(o, r).down; from = AT(o, r).down_of;
  lose_down(o, r);
  if
  :: !SAME(from, AT(o, r).wanted) /* another life's */
  :: else ->
     if
     :: AT(o, r).share == CLAIMING && frame == TICKET -> take_ticket(o, r)
     :: AT(o, r).share == CLAIMING && frame == REFUSED -> share_is_over(o, r); end_read(r)
     :: AT(o, r).share == SETTLING && frame >= VALID ->
        /* One verdict, however often it is asked for: what was settled is not denied. */
        assert(owner[o].incarnation != AT(o, r).wanted || AT(o, r).claimant != life[r] || (frame == VALID) == (AT(o, r).claim == SETTLED));
        if
        :: frame == VALID -> accept_share(o, r)
        :: else -> share_is_over(o, r); end_read(r)
        fi
     :: AT(o, r).share == TRAILING && frame == VALID -> send_up(o, r, SETTLE_ONE_WAY); accept_share(o, r)
     :: AT(o, r).share == TRAILING && frame == STALE -> end_read(r)
     :: else
     fi
  fi
}

/* The last span is here, and now the verdict. */
inline look_at_gate(o, r) {
#ifdef MUTANT_NO_SETTLE
  if
  :: true
#else
  if
  :: owner[o].in_force && SAME(owner[o].incarnation, AT(o, r).wanted)
#endif
     -> send_up(o, r, SETTLE_ONE_WAY); accept_share(o, r)
  :: else -> end_read(r)
  fi
}

inline ask(o, r) {
  AT(o, r).share = SETTLING;
  send_up(o, r, SETTLE)
}

/* The session stands again. The hello tells who is there: the same owner is asked for the claim once more, under its
   number; of its next life nothing is wanted. */
inline reconnect(o, r) {
  lose_up(o, r); lose_down(o, r);
  if
  :: SAME(owner[o].incarnation, AT(o, r).wanted) ->
     AT(o, r).share = CLAIMING; AT(o, r).wrong = 0;
     send_up(o, r, CLAIM)
  :: else -> share_is_over(o, r); end_read(r)
  fi
}

/* What it sent before may still arrive. */
inline reader_restarts(r) {
  reader_crashes--;
  life[r]++;
  each = 0;
  do
  :: each < OWNERS ->
     if
     :: AT(each, r).up != NOTHING ->
        AT(each, r).late = AT(each, r).up; AT(each, r).late_to = AT(each, r).up_to;
        AT(each, r).late_of = AT(each, r).up_of; lose_up(each, r)
     :: else
     fi;
     share_is_over(each, r);
     AT(each, r).share = IDLE;
     each++
  :: else -> break
  od;
  each = 0
}

/* ---------------------------------------------------------------- what can happen */

#ifdef MUTANT_NO_EXPIRY
#define LEASES_END false
#else
#define LEASES_END true
#endif
#ifdef MUTANT_NO_DEADLINE
#define DEADLINES false
#else
#define DEADLINES true
#endif

#define STEPS_OF_OWNER(o)                                                                                       \
  :: d_step { owner[o].parcel == ANNOUNCED && !owner[o].asked -> publish(o) }                                            \
  :: d_step { owner[o].parcel == ANNOUNCED && owner[o].asked -> bury(o) } /* publish meets a tombstone */                \
  :: d_step { owner[o].parcel == ANNOUNCED && releases > 0 -> releases--; bury(o) } /* abort */                          \
  :: d_step { owner[o].parcel == LIVE && releases > 0 -> releases--; begin_end(o) } /* forced release */                 \
  :: d_step { owner[o].parcel == LIVE && LEASES_END -> begin_end(o) }                                                    \
  :: d_step { owner[o].parcel == LIVE && MUST_END(o) -> review(o) }                                                      \
  :: d_step { owner[o].parcel == ENDING -> finish_end(o) }                                                               \
  :: d_step { owner_crashes > 0 -> owner_restarts(o) }

#define STEPS_OF_READER(r)                                                                                      \
  :: d_step { EACH_SHARE(r, IS_FREE) -> claim_all(r) }                                                          \
  :: d_step { UNWANTED && EACH_SHARE(r, IS_FREE) -> want_none(r) }                                              \
  :: d_step { DEADLINES && ANY_SHARE(r, UNDER_WAY) -> end_read(r) } /* or cancelled */                          \
  :: d_step { reader_crashes > 0 -> reader_restarts(r) }

#define STEPS_BETWEEN(o, r)                                                                                     \
  :: d_step { AT(o, r).up != NOTHING && AT(o, r).down == NOTHING -> take_frame(o, r) }                                        \
  :: d_step { AT(o, r).late != NOTHING && AT(o, r).down == NOTHING -> take_late_frame(o, r) }                         \
  :: d_step { AT(o, r).claim == WAITING && (owner[o].parcel == LIVE || owner[o].parcel == ENDED) && AT(o, r).down == NOTHING ->                 \
       answer_waiting(o, r) }                                                                                   \
  :: d_step { (AT(o, r).claim == GRANTED || AT(o, r).claim == WAITING) && IS_LOST(o, r) -> fail_claim(o, r) }                 \
  :: d_step { (AT(o, r).claim == GRANTED || AT(o, r).claim == WAITING) && !IS_LOST(o, r) && cuts > 0 ->                       \
       cuts--; fail_claim(o, r) }                                                                               \
  :: d_step { AT(o, r).down != NOTHING -> take_answer(o, r) }                                                          \
  :: d_step { AT(o, r).share == READING && BY_GATE(o, r) -> look_at_gate(o, r) }                                       \
  :: d_step { AT(o, r).share == READING && BY_ASKING(o, r) -> ask(o, r) }                                              \
  :: d_step { AT(o, r).share == READING && BY_STREAM(o, r) -> end_stream(o, r) }                                       \
  :: d_step { UNDER_WAY(o, r) && AT(o, r).wanted != owner[o].incarnation && AT(o, r).up == NOTHING &&           \
              AT(o, r).down == NOTHING ->                                                                       \
       reconnect(o, r) } /* its session has ended with the owner's life */                                      \
  :: d_step { breaks > 0 && UNDER_WAY(o, r) -> breaks--; reconnect(o, r) }                                      \
  :: d_step { breaks > 0 && AT(o, r).share == SETTLING -> /* a reader may also ask for the verdict again */            \
       breaks--; lose_up(o, r); lose_down(o, r); ask(o, r) }                                                    \
  :: d_step { breaks > 0 && !UNDER_WAY(o, r) && AT(o, r).up != NOTHING -> breaks--; lose_up(o, r); retire(o, r) }      \
  REPEAT(o, r)

#ifdef MUTANT_REPEATS
#define REPEAT(o, r)                                                                                            \
  :: d_step { AT(o, r).share == CLAIMING && AT(o, r).up == NOTHING && AT(o, r).down == NOTHING -> reconnect(o, r) }
#else
#define REPEAT(o, r)
#endif

#ifdef WITNESS
#define STOP_AT_WITNESS :: d_step { (WITNESS) -> was_seen = 1; assert(!was_seen) }
#else
#define STOP_AT_WITNESS
#endif

/* I3: when nothing can happen any more, every read has its outcome and no parcel lives on. */
inline check_end() {
  for (o : 0 .. OWNERS - 1) {
    assert(owner[o].parcel == ENDED && owner[o].memory == POISON);
    for (r : 0 .. READERS - 1) { assert(AT(o, r).share == OVER) }
  }
}

active proctype World() {
  byte o, r;
  d_step {
    for (r : 0 .. READERS - 1) { life[r] = 1 }
    for (o : 0 .. OWNERS - 1) { owner[o].incarnation = 1 }
    o = 0; r = 0
  }
  do
  STEPS_OF_OWNER(0)
  STEPS_OF_READER(0)
  STEPS_OF_READER(1)
  STEPS_BETWEEN(0, 0)
  STEPS_BETWEEN(0, 1)
#if OWNERS == 2
  STEPS_OF_OWNER(1)
  STEPS_BETWEEN(1, 0)
  STEPS_BETWEEN(1, 1)
#endif
  STOP_AT_WITNESS
  :: else -> break
  od;
  skip;
  d_step { check_end(); o = 0 }
}
