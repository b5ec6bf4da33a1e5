# One target per folder. An include path is a tree path, "core/frame/frame.h", and is found through an include root
# that belongs to the folder's target alone: including a header without linking its target does not build.

# kvc_include_root(<target> [SCOPE PUBLIC|PRIVATE|INTERFACE] [FOLDERS <subfolder>...]): gives <target> the include root of
# the current folder, and of these folders below it.
function(kvc_include_root target)
  cmake_parse_arguments(ARG "" "SCOPE" "FOLDERS" ${ARGN})
  set(scope PUBLIC ${ARG_SCOPE})
  list(GET scope -1 scope)
  set(root ${CMAKE_BINARY_DIR}/include/${target})
  file(REMOVE_RECURSE ${root})
  foreach(folder . ${ARG_FOLDERS})
    cmake_path(ABSOLUTE_PATH folder NORMALIZE)
    # Highway includes a source once for each instruction set.
    file(GLOB files CONFIGURE_DEPENDS ${folder}/*.h ${folder}/*.cc)
    foreach(file ${files})
      cmake_path(RELATIVE_PATH file BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE path)
      cmake_path(GET path PARENT_PATH parent)
      file(MAKE_DIRECTORY ${root}/${parent})
      file(CREATE_LINK ${file} ${root}/${path} SYMBOLIC)
    endforeach()
  endforeach()
  target_include_directories(${target} ${scope} $<BUILD_INTERFACE:${root}>)
endfunction()

# kvc_library(<name> SRCS ... [FOLDERS ...] [PUBLIC ...] [PRIVATE ...]): target kvc_<name>, from the current folder and
# these folders below it.
function(kvc_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;FOLDERS;PUBLIC;PRIVATE" ${ARGN})
  set(target kvc_${name})
  add_library(${target} STATIC ${ARG_SRCS})
  kvc_include_root(${target} FOLDERS ${ARG_FOLDERS})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE} $<BUILD_INTERFACE:kvc_options>)
endfunction()

# kvc_install(<set> <name> <header>...): makes target kvc_<name> part of an export set, as kvcompress::<name>, and installs
# these headers of the current folder as <kvcompress/path in the tree>, with their own includes rewritten to that.
function(kvc_install set name)
  set_target_properties(kvc_${name} PROPERTIES EXPORT_NAME ${name})
  install(TARGETS kvc_${name} EXPORT ${set} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  foreach(header ${ARGN})
    cmake_path(ABSOLUTE_PATH header OUTPUT_VARIABLE file)
    cmake_path(RELATIVE_PATH file BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE path)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} text)
    string(REGEX REPLACE "#include \"(core|client)/" "#include \"kvcompress/\\1/" text "${text}")
    set(installed ${CMAKE_BINARY_DIR}/install/${path})
    file(CONFIGURE OUTPUT ${installed} CONTENT "${text}" @ONLY)
    cmake_path(GET path PARENT_PATH parent)
    install(FILES ${installed} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/kvcompress/${parent})
  endforeach()
endfunction()

# kvc_test(<name> SRCS ... LINK ...): a GoogleTest binary; each of its tests is a CTest test.
function(kvc_test name)
  cmake_parse_arguments(ARG "" "" "SRCS;LINK" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} kvc_testing GTest::gmock GTest::gtest_main kvc_options)
  target_compile_definitions(${name} PRIVATE KVC_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  # What is looked at is the code under test: reading the tests' headers again for each of their files and optimizing
  # them would take most of a build.
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON)
  if(KVC_SANITIZE)
    target_compile_options(${name} PRIVATE -O0)
  else()
    target_compile_options(${name} PRIVATE -O1)
  endif()
  if(KVC_SANITIZE STREQUAL "thread")
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/sanitizer/absl_tsan.cc)
    target_link_libraries(${name} PRIVATE absl::synchronization ${CMAKE_DL_LIBS})
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()

# kvc_fuzzer(<name> SRCS ... LINK ...): a libFuzzer binary; only in builds with KVC_FUZZ.
function(kvc_fuzzer name)
  if(NOT KVC_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS;LINK" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} kvc_testing kvc_options)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
