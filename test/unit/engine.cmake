kvferry_test(engine_parts_test WHOLE TIMEOUT 240
  SOURCES engine_driver_test.cc engine_guests_test.cc engine_memory_test.cc engine_ofi_name_test.cc
    engine_plan_wire_test.cc engine_rails_test.cc engine_session_test.cc engine_socket_test.cc engine_topology_test.cc
    parcel_staged_read_test.cc
    # of plug-ins, which no test links
    ${PROJECT_SOURCE_DIR}/engine/fabric/ofi/name.cc ${PROJECT_SOURCE_DIR}/engine/fabric/ucx/device.cc
  LINKS kvferry_engine)
get_property(plugins GLOBAL PROPERTY KVFERRY_FABRIC_PLUGINS)
if("kvferry_fabric_ofi" IN_LIST plugins)
  target_sources(engine_parts_test PRIVATE engine_ofi_range_test.cc)
  target_include_directories(engine_parts_test SYSTEM PRIVATE ${OFI_INCLUDE_DIRS})
  # It stands in for a header's lines.
  set_source_files_properties(engine_ofi_range_test.cc PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endif()
kvferry_test(engine_secure_test WHOLE SOURCES engine_secure_test.cc engine_kernel_tls_test.cc LINKS kvferry_trial_keys)
