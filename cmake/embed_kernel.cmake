# Writes MADE, a C++ source that holds the bytes of IMAGE, or none where IMAGE is empty.
set(bytes "")
if(IMAGE)
  file(READ ${IMAGE} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n    " bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1, " bytes "${bytes}")
endif()
file(WRITE ${MADE} "#include \"engine/memory/cuda/cuda_memory.h\"

namespace kvferry::cuda {
namespace {

// Ends with a byte more, so that it is an array where there is no kernel, too.
alignas(16) constexpr unsigned char kImage[] = {
    ${bytes}0};

}  // namespace

std::span<const unsigned char> Options::compiled_kernel() {
  return {kImage, sizeof(kImage) - 1};
}

}  // namespace kvferry::cuda
")
