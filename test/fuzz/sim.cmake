if(TARGET kvferry_sim_core)
  kvferry_fuzzer(sim_openai SOURCES sim_openai_fuzz.cc LINKS kvferry_sim_core)
endif()
