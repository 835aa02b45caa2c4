# `cmake --install`: libkvferry.so with a soname, the public headers, find_package(kvferry), kvferry.pc and the programs.
# The installed tree may be moved: nothing in it names its prefix.
if(NOT TARGET kvferry)
  return()
endif()
include(CMakePackageConfigHelpers)

# The public face. What these include is installed with them, and nothing else.
set(faces engine/engine.h)
foreach(face engine/parcel.h)
  if(EXISTS ${PROJECT_SOURCE_DIR}/${face})
    list(APPEND faces ${face})
  endif()
endforeach()

# Sets `out` to the headers of the project that `faces` include, directly or not, and `out_fmt` to whether any uses fmt.
function(kvferry_public_headers out out_fmt)
  set(waiting ${ARGN})
  set(found)
  set(uses_fmt FALSE)
  while(waiting)
    list(POP_FRONT waiting header)
    if(header IN_LIST found)
      continue()
    endif()
    list(APPEND found ${header})
    file(STRINGS ${PROJECT_SOURCE_DIR}/${header} includes REGEX "^#include ")
    foreach(include IN LISTS includes)
      if(include MATCHES "^#include \"([^\"]+)\"")
        list(APPEND waiting ${CMAKE_MATCH_1})
      elseif(include MATCHES "<fmt/")
        set(uses_fmt TRUE)
      endif()
    endforeach()
  endwhile()
  set(${out} ${found} PARENT_SCOPE)
  set(${out_fmt} ${uses_fmt} PARENT_SCOPE)
endfunction()

kvferry_public_headers(public_headers uses_fmt ${faces})
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${public_headers})
foreach(header IN LISTS public_headers)
  cmake_path(GET header PARENT_PATH folder)
  install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvferry/${folder})
endforeach()

# While the major version is 0, each minor version may change the binary interface.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(soversion 0.${PROJECT_VERSION_MINOR})
else()
  set(soversion ${PROJECT_VERSION_MAJOR})
endif()
set_target_properties(kvferry PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${soversion})
# Headers include each other from the root of the tree, which include/kvferry is once installed.
target_include_directories(kvferry INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                             $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/kvferry>)
target_compile_features(kvferry INTERFACE cxx_std_20)
set(config_requires "")
set(pc_requires "")
if(uses_fmt)
  target_link_libraries(kvferry INTERFACE fmt::fmt)
  set(config_requires "include(CMakeFindDependencyMacro)\nfind_dependency(fmt)\n")
  set(pc_requires "fmt")
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvferry)
# Beside the library, where it looks for them.
get_property(plugins GLOBAL PROPERTY KVFERRY_FABRIC_PLUGINS)
if(plugins)
  install(TARGETS ${plugins} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
install(TARGETS kvferry EXPORT kvferryTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT kvferryTargets NAMESPACE kvferry:: DESTINATION ${package_dir})
file(CONFIGURE OUTPUT kvferryConfig.cmake @ONLY CONTENT
  "@config_requires@include(\${CMAKE_CURRENT_LIST_DIR}/kvferryTargets.cmake)\n")
# While the major version is 0, a program asks for the minor version that it was written for.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvferryConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvferryConfig.cmake ${PROJECT_BINARY_DIR}/kvferryConfigVersion.cmake
        DESTINATION ${package_dir})

# From lib/<triplet>/pkgconfig back to the prefix.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
           OUTPUT_VARIABLE prefix_from_pkgconfig)
configure_file(${PROJECT_SOURCE_DIR}/cmake/kvferry.pc.in ${PROJECT_BINARY_DIR}/kvferry.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvferry.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

foreach(program kvferry-bench kvferry-bootstrap kvferry-proxy kvferry-sim)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()
