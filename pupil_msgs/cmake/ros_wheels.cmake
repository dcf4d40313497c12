# Makes ROS 2 from PyPI's wheels fit to build messages with. Does nothing in a ROS installation.

# Before the first find_package: wheels hold ROS in the prefix they are installed in, and no setup file says so.
macro(ros_wheels_find)
  if(SKBUILD)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c "
import pathlib, sys
prefixes = (pathlib.Path(entry).parents[2] for entry in sys.path if entry.endswith('site-packages'))
print(*(prefix for prefix in prefixes if (prefix / 'share/ament_index').is_dir()), sep=';', end='')"
      OUTPUT_VARIABLE ros_wheels_prefixes COMMAND_ERROR_IS_FATAL ANY)
    list(PREPEND CMAKE_PREFIX_PATH ${ros_wheels_prefixes})
    list(JOIN ros_wheels_prefixes ":" ros_wheels_prefixes)
    set(ENV{AMENT_PREFIX_PATH} "${ros_wheels_prefixes}")
  endif()
endmacro()

# Before rosidl_generate_interfaces: no C++, which Python has no use for and which takes half of the time.
macro(ros_wheels_without_cpp)
  if(SKBUILD)
    list(FILTER AMENT_EXTENSIONS_rosidl_generate_idl_interfaces EXCLUDE REGEX "_cpp:")
  endif()
endmacro()

# After it.
macro(ros_wheels_repair)
  # Targets in the wheels name the include directory of the Python that built them, such as
  # /opt/python/cp311-cp311/include/python3.11, and CMake refuses a target that names what is not there.
  get_property(ros_wheels_targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(ros_wheels_target ${ros_wheels_targets})
    get_target_property(ros_wheels_include ${ros_wheels_target} INTERFACE_INCLUDE_DIRECTORIES)
    if(ros_wheels_include MATCHES "/opt/python/")
      list(FILTER ros_wheels_include EXCLUDE REGEX "^/opt/python/")
      set_target_properties(${ros_wheels_target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${ros_wheels_include}")
    endif()
  endforeach()
  # What serialises is written in C++, one file a message, and nearly all of its 14 s is spent on the same headers.
  if(SKBUILD)
    set_target_properties(${PROJECT_NAME}__rosidl_typesupport_fastrtps_c PROPERTIES
      UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  endif()
endmacro()
