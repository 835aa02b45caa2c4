if(NOT TARGET kvferry-bench)
  return()
endif()
kvferry_test(bench_test SOURCES ${CMAKE_CURRENT_LIST_DIR}/bench_test.cc LINKS kvferry_bench_core kvferry_test_process
             LABEL system TIMEOUT 120)
target_compile_definitions(bench_test PRIVATE KVF_BENCH="$<TARGET_FILE:kvferry-bench>"
                                              KVF_FAKE_CUDA="$<TARGET_FILE:kvferry_fake_cuda>")
add_dependencies(bench_test kvferry-bench kvferry_fake_cuda)
