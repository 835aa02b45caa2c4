# splice: the JSON splicer against a JSON library. http: heads and chunked framing.
if(TARGET kvferry_proxy_core)
  kvferry_fuzzer(splice SOURCES fuzz_splice.cc LINKS kvferry_proxy_core)
  kvferry_fuzzer(http SOURCES fuzz_http.cc LINKS kvferry_proxy_core)
endif()
