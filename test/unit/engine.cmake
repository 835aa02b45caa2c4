kvferry_test(engine_parts_test WHOLE
  SOURCES engine_driver_test.cc engine_memory_test.cc engine_plan_wire_test.cc engine_session_test.cc
  LINKS kvferry_engine)
