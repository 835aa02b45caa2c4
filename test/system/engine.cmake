kvferry_test(faults_test
  SOURCES late_writes_test.cc peer_faults_test.cc quarantine_test.cc starving_test.cc
  LINKS kvferry_test_target
  LABEL system
  TIMEOUT 180)
