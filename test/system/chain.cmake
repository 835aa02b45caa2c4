# Tests in Python of whole chains. Each runs alone: it is several servers on two cores. Sanitizers make a model server
# too slow for them; what is inside is tested there by itself.
if(NOT KVFERRY_SANITIZE)
  foreach(name sim_server demo metrics dashboard docs)
    add_test(NAME chain.${name} COMMAND /usr/bin/python3 ${CMAKE_CURRENT_SOURCE_DIR}/chain/${name}_test.py -v
             WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(chain.${name} PROPERTIES LABELS system TIMEOUT 600 RUN_SERIAL TRUE
      ENVIRONMENT "PYTHONPATH=${PROJECT_SOURCE_DIR}/scripts;KVFERRY_PROGRAMS=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  endforeach()
endif()
