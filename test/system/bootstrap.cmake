kvferry_test(bootstrap_abuse_test SOURCES bootstrap_abuse_test.cc LINKS kvferry_test_process LABEL system TIMEOUT 120)
target_compile_definitions(bootstrap_abuse_test PRIVATE KVF_BOOTSTRAP="$<TARGET_FILE:kvferry-bootstrap>")
add_dependencies(bootstrap_abuse_test kvferry-bootstrap)
kvferry_test(bootstrap_engine_test SOURCES bootstrap_engine_test.cc bootstrap_tls_test.cc
  LINKS kvferry_bootstrap kvferry_trial_keys LABEL system)
kvferry_test(bootstrap_program_test SOURCES bootstrap_program_test.cc LINKS kvferry_bootstrap kvferry_test_process
             LABEL system)
target_compile_definitions(bootstrap_program_test PRIVATE KVF_BOOTSTRAP="$<TARGET_FILE:kvferry-bootstrap>")
add_dependencies(bootstrap_program_test kvferry-bootstrap)
