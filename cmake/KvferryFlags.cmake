# One interface target carries the warnings, the sanitizers and the hardening of every target of this project.
add_library(kvferry_flags INTERFACE)
target_include_directories(kvferry_flags INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_compile_options(kvferry_flags INTERFACE -Wall -Wextra -Wsign-conversion -Wshadow -Werror)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(kvferry_flags INTERFACE -Wthread-safety)
elseif(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC bug 105651: g++ 12 sees overlapping copies in any "literal" + std::string at -O2 and above.
  target_compile_options(kvferry_flags INTERFACE -Wno-restrict)
endif()

if(KVFERRY_UNITY AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # g++ takes what one source of a unit hides from the others for what a header hides.
  target_compile_options(kvferry_flags INTERFACE -Wno-subobject-linkage)
endif()

if(KVFERRY_FUZZ) # the layers count the edges that libFuzzer steers by
  target_compile_options(kvferry_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(KVFERRY_SANITIZE)
  target_compile_options(kvferry_flags INTERFACE -fsanitize=${KVFERRY_SANITIZE} -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=all)
  target_link_options(kvferry_flags INTERFACE -fsanitize=${KVFERRY_SANITIZE})
  if(KVFERRY_SANITIZE MATCHES undefined)
    # vptr reads an object through a pipe, and where descriptors ran out, as they do in tests, it finds no object.
    target_compile_options(kvferry_flags INTERFACE -fno-sanitize=vptr)
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      # A quarter of the compiler's time. Use of a null pointer ends the test all the same; the parsers of the fuzz
      # targets, which clang builds, keep both.
      target_compile_options(kvferry_flags INTERFACE -fno-sanitize=null,alignment)
    endif()
  endif()
  # clang 14 cannot put what this check needs before coroutines ("Cannot represent a difference across sections").
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    target_compile_options(kvferry_flags INTERFACE -fno-sanitize=function)
  endif()
  if(KVFERRY_SANITIZE MATCHES thread AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(kvferry_flags INTERFACE -Wno-tsan) # atomic_thread_fence: see engine/memory/gate.h
  endif()
elseif(CMAKE_BUILD_TYPE MATCHES "Release|RelWithDebInfo")
  target_compile_options(kvferry_flags INTERFACE -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
  target_link_options(kvferry_flags INTERFACE -Wl,-z,relro,-z,now)
endif()

# With KVFERRY_UNITY, sources of a target that share no name are compiled in one go: most of what the compiler does under
# sanitizers it does for headers and templates that they have in common.
function(kvferry_unite target)
  if(NOT KVFERRY_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources EXCLUDE REGEX "^${PROJECT_BINARY_DIR}/") # made by the build, not there yet
  execute_process(
    COMMAND /usr/bin/python3 -B ${PROJECT_SOURCE_DIR}/scripts/lint.d/units.py 20 ${sources}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE units OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  foreach(source unit IN ZIP_LISTS sources units)
    set_property(SOURCE ${source} PROPERTY UNITY_GROUP ${target}_${unit})
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

# A layer: one static library per folder, linked into programs, tests and the shared library alike.
function(kvferry_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINKS")
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC kvferry_flags ${arg_LINKS})
  kvferry_unite(${name})
  if(KVFERRY_PRECOMPILED)
    kvferry_precompiled(${name} ${KVFERRY_PRECOMPILED})
  endif()
endfunction()

function(kvferry_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINKS")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE kvferry_flags ${arg_LINKS})
  target_link_options(${name} PRIVATE -pie)
  if(KVFERRY_PRECOMPILED)
    kvferry_precompiled(${name} ${KVFERRY_PRECOMPILED})
  endif()
endfunction()

# One test binary; LABEL sorts it into a stage of scripts/test, TIMEOUT bounds each of its cases, with two minutes on top
# in which the machine may stand still. ONE_THREAD: there is no second thread in it, so ThreadSanitizer would take
# minutes and see nothing.
function(kvferry_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "WHOLE;ONE_THREAD" "LABEL;TIMEOUT" "SOURCES;LINKS")
  if(arg_ONE_THREAD AND KVFERRY_SANITIZE MATCHES thread)
    return()
  endif()
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(KVFERRY_SANITIZE)
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 4")
  endif()
  math(EXPR arg_TIMEOUT "${arg_TIMEOUT} + 120")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE kvferry_flags ${arg_LINKS} GTest::gtest GTest::gmock GTest::gtest_main)
  kvferry_unite(${name})
  kvferry_precompiled(${name} test)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test)
  if(arg_WHOLE) # one process for all its cases: cheap, for many small ones
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
  else()
    gtest_discover_tests(${name} DISCOVERY_TIMEOUT 300 PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT})
  endif()
endfunction()

# A fabric that is made of a foreign library, which pkg-config knows as LIBRARY: a shared object of its own out of
# fabric/<name>, which has nothing of the project but headers, so that it may be built and replaced alone, and which the
# engine finds beside itself by its name. It is left out where the library is not here, or the option
# KVFERRY_<NAME> is off. initfirst: see the fabric's early.cc.
function(kvferry_fabric_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LIBRARY" "SOURCES")
  string(TOUPPER ${name} prefix)
  if(KVFERRY_${prefix} AND NOT KVFERRY_FUZZ)
    find_package(PkgConfig)
    if(PKG_CONFIG_FOUND)
      pkg_check_modules(${prefix} IMPORTED_TARGET ${arg_LIBRARY})
    endif()
  endif()
  if(NOT KVFERRY_${prefix} OR NOT ${prefix}_FOUND)
    message(STATUS "No fabric ${name}: it is switched off, or ${arg_LIBRARY} is not here")
    return()
  endif()
  set(target kvferry_fabric_${name})
  list(TRANSFORM arg_SOURCES PREPEND fabric/${name}/)
  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE kvferry_flags PkgConfig::${prefix})
  target_link_options(${target} PRIVATE LINKER:-z,initfirst)
  set_property(GLOBAL APPEND PROPERTY KVFERRY_FABRIC_PLUGINS ${target})
endfunction()

# A shared library out of whole layers: what they export (KVFERRY_API) is kept even where nothing inside uses it.
# LAYERS names every layer that must be in it, not only the topmost.
function(kvferry_shared_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LAYERS")
  add_library(${name} SHARED)
  foreach(layer IN LISTS arg_LAYERS)
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:${layer}>)
  endforeach()
  target_link_libraries(${name} PRIVATE ${arg_LAYERS}) # for the libraries beneath; their own objects are here already
endfunction()
