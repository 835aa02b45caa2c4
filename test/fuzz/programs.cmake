kvferry_fuzzer(settings SOURCES settings_fuzz.cc ${PROJECT_SOURCE_DIR}/bootstrap/config.cc
               LINKS kvferry_engine kvferry_bootstrap_core kvferry_proxy_core)
