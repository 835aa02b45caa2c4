kvferry_test(sim_model_test SOURCES sim_model_test.cc LINKS kvferry_sim_core)
