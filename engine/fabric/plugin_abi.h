#pragma once

// NOLINTBEGIN(modernize-*): plain C
#include <stddef.h>
#include <stdint.h>

// What a fabric in a shared object of its own (libkvferry_fabric_<name>.so) and the engine call of each other: plain C,
// so that no C++ type, exception or allocator crosses, and the engine never links the library that the fabric is made
// of. The engine's side is engine/fabric/plugin/.
//
// Thread rules: map, unmap and pack_key from any thread, everything else by the owner of the engine's loop. The host's
// functions are called only from within progress(), disconnect() and cancel(), and must not call back into the fabric.

#ifdef __cplusplus
extern "C" {
#endif

// Both sides must have the same number: any change of this file counts it up.
#define KVF_FABRIC_ABI 5u
// The one symbol that a plug-in exports: `const kvf_fabric_table* kvferry_fabric_v1(void)`.
#define KVF_FABRIC_ENTRY "kvferry_fabric_v1"

// How far something reaches that went wrong: one operation, or the endpoint with all that was in flight on it.
enum kvf_result {
  KVF_OK = 0,
  KVF_PENDING = 1,  // its end is told by kvf_host.ended
  KVF_BUSY = 2,     // again after progress(): nothing was begun
  KVF_FAILED = -1,  // this operation alone
  KVF_LOST = -2,    // the endpoint is dead
};

typedef struct kvf_fabric kvf_fabric;      // an opened fabric of one engine
typedef struct kvf_memory kvf_memory;      // a registered range
typedef struct kvf_endpoint kvf_endpoint;  // a connection to one peer
typedef struct kvf_key kvf_key;            // a peer's key, usable on one endpoint

// What a range of memory is. A fabric refuses kinds that it does not know.
enum kvf_memory_kind {
  KVF_HOST = 0,
  KVF_CUDA = 1,  // of an NVIDIA GPU, by its address in CUDA's unified address space
};

typedef struct {
  void* base;
  uint64_t length;
  int32_t kind;    // kvf_memory_kind
  int32_t device;  // KVF_CUDA: the GPU's number in this process, whose primary context is current in map(); else -1
  // KVF_CUDA, where the driver gives them: a dma_buf that holds the range, closed when map() has returned; else -1.
  int32_t dmabuf;
  uint64_t dmabuf_offset;  // of the range in it
} kvf_range;

// Where a function says why it failed: cut to `size` with its final zero.
typedef struct {
  char* data;
  size_t size;
} kvf_text;

typedef struct {
  const char* name;
  const char* value;
} kvf_setting;

typedef struct {
  void* self;
  // An operation that was KVF_PENDING has ended; its memory is quiet.
  void (*ended)(void* self, uint64_t operation, int32_t result, const char* why);
  // An endpoint that connect() made is dead. What is in flight on it ends too, at the latest in disconnect().
  void (*lost)(void* self, uint64_t endpoint, const char* why);
  // Whether the peer whose fabric was opened as `client` may connect to this one.
  int32_t (*admit)(void* self, uint64_t client);
} kvf_host;

typedef struct {
  const kvf_setting* settings;  // the library's own names, without prefix
  size_t setting_count;
  uint64_t client;   // how this fabric introduces itself to those that it connects to
  const char* host;  // numeric: where peers shall connect, and whose device is meant where a machine has several
} kvf_open_params;

typedef struct {
  char description[160];  // library, version, transports
  char device[64];        // its name in /sys/class/infiniband or /sys/class/net; empty: several, or not known
  // The peer's memory is reached without its CPU, and only by a key that is in force: what unmap() took back cannot be
  // touched any more. Otherwise the peer moves the bytes itself, and believes what it is told.
  int32_t enforces_keys;
  uint64_t longest_operation;  // bytes of one get or put
} kvf_facts;

typedef struct {
  uint32_t abi;  // KVF_FABRIC_ABI
  const char* name;

  // Failing to open is how a fabric says that it is not viable on this machine.
  int32_t (*open)(const kvf_host* host, const kvf_open_params* params, kvf_fabric** out, kvf_facts* facts,
                  kvf_text why);
  // REQUIRES: every endpoint of it is gone. Memory that is left is taken back, and what disconnect() could not end has
  // ended.
  void (*close)(kvf_fabric* fabric);

  // Readable when there may be something to progress, once arm() has said KVF_OK and a progress() behind that has done
  // nothing; KVF_BUSY: progress first.
  int32_t (*wake_fd)(kvf_fabric* fabric);
  int32_t (*arm)(kvf_fabric* fabric);
  // How much was done; 0: nothing is left to do now.
  uint32_t (*progress)(kvf_fabric* fabric);

  // Takes connections at the host that open() was told; writes where, for connect(), as "host:port" where it has that
  // form.
  int32_t (*listen)(kvf_fabric* fabric, kvf_text address, kvf_text why);
  // Ends the connections of that client, and refuses nothing: admit() decides whether it may come back. KVF_OK: nothing
  // that came by them is applied any more. KVF_FAILED: that is not sure.
  int32_t (*fence)(kvf_fabric* fabric, uint64_t client);

  int32_t (*map)(kvf_fabric* fabric, const kvf_range* range, kvf_memory** out, kvf_text why);
  // When it returns, and the fabric enforces keys, nobody reaches the memory by them any more.
  void (*unmap)(kvf_fabric* fabric, kvf_memory* memory);
  // The bytes with which peers reach the memory. In: room, out: size.
  int32_t (*pack_key)(kvf_fabric* fabric, kvf_memory* memory, void* out, size_t* size, kvf_text why);

  // Returns at once; the connection stands when a flush() has ended well.
  int32_t (*connect)(kvf_fabric* fabric, const char* address, uint64_t endpoint, kvf_endpoint** out, kvf_text why);
  // Ends everything in flight on the endpoint and frees it, keys excepted. KVF_FAILED: some of it could not be ended
  // within the patience, its memory may still be touched; then the endpoint is left as it is.
  int32_t (*disconnect)(kvf_endpoint* endpoint, uint32_t patience_ms);
  // REQUIRES: the connection stands.
  int32_t (*import_key)(kvf_endpoint* endpoint, const void* bytes, size_t size, kvf_key** out, kvf_text why);
  void (*drop_key)(kvf_key* key);

  // One contiguous piece. `memory` may be null: the local range is the host's, and the fabric registers it itself.
  // What get() has written to a GPU need not be visible there when it has ended: the engine sees to that. REQUIRES: the
  // remote range lies in the key's region; a fabric that does not enforce keys would believe anything.
  int32_t (*get)(kvf_endpoint* endpoint, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
                 uint64_t operation, kvf_text why);
  int32_t (*put)(kvf_endpoint* endpoint, const void* local, kvf_memory* memory, uint64_t remote, kvf_key* key,
                 size_t length, uint64_t operation, kvf_text why);
  // Ends when everything that was put before has arrived in the peer's memory.
  int32_t (*flush)(kvf_endpoint* endpoint, uint64_t operation, kvf_text why);
  // Takes gets and puts back that have not begun: those have ended with KVF_FAILED, and nothing of them is under way.
  // The others end sooner if the library can do that, and as they would have.
  void (*cancel)(kvf_endpoint* endpoint, const uint64_t* operations, size_t count);
} kvf_fabric_table;

#ifdef __cplusplus
}
#endif
// NOLINTEND(modernize-*)
