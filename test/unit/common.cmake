kvferry_test(common_test
  SOURCES common_bytes_test.cc common_config_test.cc common_metrics_test.cc common_result_test.cc common_time_test.cc
  LINKS kvferry_common)
