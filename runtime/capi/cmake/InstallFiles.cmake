# Library, header, dithead.pc, and what find_package(dithead) reads.
include(CMakePackageConfigHelpers)

install(TARGETS dithead EXPORT dithead
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES include/dithead.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# An ONNX Runtime that is in none of the system's folders goes beside the library, where linkers and
# the library itself look for it.
get_filename_component(onnxruntime ${ONNXRUNTIME_LIBRARY} REALPATH)
get_filename_component(onnxruntime_folder ${onnxruntime} DIRECTORY)
set(elsewhere ON)
foreach(system_folder ${CMAKE_C_IMPLICIT_LINK_DIRECTORIES})
    get_filename_component(system_folder ${system_folder} REALPATH)
    if(system_folder STREQUAL onnxruntime_folder)
        set(elsewhere OFF)
    endif()
endforeach()
option(DITHEAD_INSTALL_ONNXRUNTIME "install ONNX Runtime's library beside this one" ${elsewhere})
if(DITHEAD_INSTALL_ONNXRUNTIME)
    if(UNIX AND NOT APPLE)
        set(name libonnxruntime.so.1)
    else()
        get_filename_component(name ${onnxruntime} NAME)
    endif()
    install(FILES ${onnxruntime} DESTINATION ${CMAKE_INSTALL_LIBDIR} RENAME ${name})
    file(GLOB providers ${onnxruntime_folder}/*onnxruntime_providers_*)
    install(FILES ${providers} DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

# Relative to the file itself, as `cmake --install` may be given another prefix.
file(RELATIVE_PATH prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/dithead.pc.in dithead.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/dithead.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(folder ${CMAKE_INSTALL_LIBDIR}/cmake/dithead)
install(EXPORT dithead NAMESPACE dithead:: FILE ditheadConfig.cmake DESTINATION ${folder})
write_basic_package_version_file(ditheadConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/ditheadConfigVersion.cmake DESTINATION ${folder})
