add_library(sim_test_support STATIC ${PROJECT_SOURCE_DIR}/test/support/sim_kv_exchange.cc)
target_link_libraries(sim_test_support PUBLIC kvferry_sim_core)

kvferry_test(sim_model_test ONE_THREAD SOURCES sim_model_test.cc sim_reference_test.cc LINKS kvferry_sim_core)
kvferry_test(sim_serving_test SOURCES sim_serving_test.cc sim_serving_threads_test.cc LINKS sim_test_support)
kvferry_test(sim_parts_test WHOLE ONE_THREAD
  SOURCES sim_block_allocator_test.cc sim_openai_test.cc sim_options_test.cc sim_sampler_test.cc sim_scheduler_test.cc
  LINKS kvferry_sim_core)
kvferry_test(sim_handover_test WHOLE SOURCES sim_handover_test.cc LINKS kvferry_sim)
