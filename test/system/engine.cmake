kvferry_test(faults_test
  SOURCES peer_faults_test.cc quarantine_test.cc slow_peer_test.cc starving_test.cc
  LINKS kvferry_test_devices kvferry_test_target kvferry_test_fabrics kvferry_trial_keys LABEL system TIMEOUT 300)
kvferry_test(late_writes_test
  SOURCES late_writes_test.cc cut_late_writes_test.cc
  LINKS kvferry_test_target kvferry_test_link kvferry_test_fabrics kvferry_trial_keys LABEL system TIMEOUT 600)
kvferry_test(network_faults_test
  SOURCES network_faults_test.cc network_parcels_test.cc rail_faults_test.cc
  LINKS kvferry_test_target kvferry_test_link kvferry_test_fabrics kvferry_trial_keys LABEL system TIMEOUT 120)
kvferry_test(auth_test SOURCES auth_test.cc exhaustion_test.cc parcel_tickets_test.cc LINKS kvferry_engine kvferry_trial_keys LABEL system TIMEOUT 120)
kvferry_test(liars_test
  SOURCES local_liars_test.cc lying_initiator_test.cc lying_owner_test.cc reader_incarnations_test.cc
  LINKS kvferry_engine kvferry_test_process LABEL system TIMEOUT 120)
get_property(plugins GLOBAL PROPERTY KVFERRY_FABRIC_PLUGINS)
if(plugins)
  add_dependencies(network_faults_test ${plugins})
  foreach(test faults_test late_writes_test)  # in the guest of test/rdma_vm
    add_dependencies(${test} ${plugins})
  endforeach()
endif()
foreach(test faults_test liars_test)
  target_compile_definitions(${test} PRIVATE KVF_STRANGER="${CMAKE_CURRENT_SOURCE_DIR}/stranger.py")
endforeach()
