# Library, header, dithead.pc, and what find_package(dithead) reads.
include(CMakePackageConfigHelpers)

install(TARGETS dithead EXPORT dithead
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES include/dithead.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# Relative to the file itself, as `cmake --install` may be given another prefix.
file(RELATIVE_PATH prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/dithead.pc.in dithead.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/dithead.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(folder ${CMAKE_INSTALL_LIBDIR}/cmake/dithead)
install(EXPORT dithead NAMESPACE dithead:: FILE ditheadConfig.cmake DESTINATION ${folder})
write_basic_package_version_file(ditheadConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/ditheadConfigVersion.cmake DESTINATION ${folder})
