kvferry_test(secrets_test SOURCES secrets_test.cc LINKS kvferry_test_process LABEL system TIMEOUT 120)
target_compile_definitions(secrets_test PRIVATE
  KVF_BOOTSTRAP="$<TARGET_FILE:kvferry-bootstrap>" KVF_PROXY="$<TARGET_FILE:kvferry-proxy>")
add_dependencies(secrets_test kvferry-bootstrap kvferry-proxy)
