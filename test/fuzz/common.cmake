kvferry_fuzzer(bytes SOURCES bytes_fuzz.cc LINKS kvferry_common)
kvferry_fuzzer(config SOURCES config_fuzz.cc LINKS kvferry_common)
