set(KVFERRY_FUZZ_SECONDS 20 CACHE STRING "How long ctest runs each libFuzzer target")

add_custom_target(fuzzers) # `scripts/build fuzz fuzzers` builds what the fuzzing needs and no program

# One libFuzzer target; its test starts from the seeds in corpus/<name> beside it and keeps what it finds, and the input
# of a crash, in the build folder. What an input may take counts while the machine stands still, too: a minute is what
# only an input without an end takes.
function(kvferry_fuzzer name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINKS")
  set(target fuzz_${name})
  set(found ${PROJECT_BINARY_DIR}/fuzz/${name})
  set(seeds ${CMAKE_CURRENT_SOURCE_DIR}/corpus/${name})
  if(NOT EXISTS ${seeds})
    message(FATAL_ERROR "${target} has no seed corpus ${seeds}")
  endif()
  add_executable(${target} ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE kvferry_flags ${arg_LINKS})
  add_dependencies(fuzzers ${target})
  target_compile_options(${target} PRIVATE -fsanitize=fuzzer)
  target_link_options(${target} PRIVATE -fsanitize=fuzzer)
  file(MAKE_DIRECTORY ${found})
  add_test(NAME fuzz.${name} COMMAND ${target} -max_total_time=${KVFERRY_FUZZ_SECONDS} -timeout=60 -rss_limit_mb=1024
                                     -print_final_stats=1 -artifact_prefix=${found}/crash- ${found} ${seeds})
  math(EXPR limit "${KVFERRY_FUZZ_SECONDS} + 180")
  set_tests_properties(fuzz.${name} PROPERTIES LABELS fuzz TIMEOUT ${limit})
endfunction()
