# splice: the JSON splicer against a JSON library. http: heads and chunked framing. Corpus: test/fuzz/corpus/<name>.
foreach(name splice http)
  add_executable(fuzz_${name} ${CMAKE_CURRENT_LIST_DIR}/fuzz_${name}.cc)
  target_link_libraries(fuzz_${name} PRIVATE kvferry_flags kvferry_proxy_core)
  target_compile_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
endforeach()
