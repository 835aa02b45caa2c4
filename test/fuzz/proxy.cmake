# splice: the JSON splicer against a JSON library. http: heads and chunked framing. proxy_admin: changes of backends.
if(TARGET kvferry_proxy_core)
  kvferry_fuzzer(splice SOURCES fuzz_splice.cc LINKS kvferry_proxy_core)
  kvferry_fuzzer(http SOURCES fuzz_http.cc LINKS kvferry_proxy_core)
  kvferry_fuzzer(proxy_admin SOURCES proxy_admin_fuzz.cc LINKS kvferry_proxy_core)
endif()
