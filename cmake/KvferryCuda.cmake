# The CUDA memory kind is built everywhere; only its kernel needs nvcc, and without one it does without the kernel.
find_program(KVFERRY_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda/bin DOC "Compiles the kernel; optional")

# Sets `result` to a C++ source that holds the compiled kernel, or nothing where there is no nvcc. Machine code for the
# common generations of GPUs and PTX for those to come, which a driver of the same major version as nvcc understands.
function(kvferry_cuda_kernel result source)
  set(made ${CMAKE_CURRENT_BINARY_DIR}/kernel_image.cc)
  set(embed ${PROJECT_SOURCE_DIR}/cmake/embed_kernel.cmake)
  if(KVFERRY_NVCC)
    set(image ${CMAKE_CURRENT_BINARY_DIR}/move_spans.fatbin)
    add_custom_command(
      OUTPUT ${image}
      COMMAND ${KVFERRY_NVCC} -std=c++17 -O3 -I${PROJECT_SOURCE_DIR} -gencode arch=compute_80,code=sm_80
              -gencode arch=compute_90,code=sm_90 -gencode arch=compute_80,code=compute_80 -fatbin
              ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${image}
      DEPENDS ${source} memory/cuda/move_spans.h
      VERBATIM)
  endif()
  add_custom_command(
    OUTPUT ${made}
    COMMAND ${CMAKE_COMMAND} -DIMAGE=${image} -DMADE=${made} -P ${embed}
    DEPENDS ${image} ${embed}
    VERBATIM)
  set(${result} ${made} PARENT_SCOPE)
endfunction()
