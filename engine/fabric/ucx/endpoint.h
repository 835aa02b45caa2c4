#pragma once

#include "engine/fabric/ucx/fabric.h"

// The initiator's operations on one endpoint, as plugin_abi.h states them.
namespace kvferry::ucx {

int32_t connect(kvf_fabric* fabric, const char* address, uint64_t endpoint, kvf_endpoint** out, kvf_text why);
int32_t disconnect(kvf_endpoint* endpoint, uint32_t patience_ms);
int32_t import_key(kvf_endpoint* endpoint, const void* bytes, size_t size, kvf_key** out, kvf_text why);
void drop_key(kvf_key* key);
int32_t get(kvf_endpoint* endpoint, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why);
int32_t put(kvf_endpoint* endpoint, const void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why);
int32_t flush(kvf_endpoint* endpoint, uint64_t operation, kvf_text why);

}  // namespace kvferry::ucx
