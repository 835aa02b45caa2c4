kvferry_test(faults_test
  SOURCES peer_faults_test.cc late_writes_test.cc quarantine_test.cc starving_test.cc
  LINKS kvferry_test_target kvferry_trial_keys LABEL system TIMEOUT 300)
kvferry_test(auth_test SOURCES auth_test.cc parcel_tickets_test.cc LINKS kvferry_engine kvferry_trial_keys LABEL system TIMEOUT 60)
kvferry_test(liars_test
  SOURCES lying_initiator_test.cc lying_owner_test.cc reader_incarnations_test.cc
  LINKS kvferry_engine LABEL system TIMEOUT 120)
