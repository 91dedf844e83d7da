"""create_xcframework.py FRAMEWORK HEADERS LIBRARY...: what `xcodebuild -create-xcframework` makes of static libraries
for iPhones and for simulators, in folders of these names, where there is no Xcode."""

import pathlib
import plistlib
import shutil
import subprocess
import sys

framework, headers, *libraries = map(pathlib.Path, sys.argv[1:])
slices = []
for library in libraries:
    listed = subprocess.run(["llvm-lipo-22", "-archs", library], check=True, capture_output=True, text=True)
    architectures = sorted(listed.stdout.split())
    identifier = "ios-" + "_".join(architectures)
    described = {
        "HeadersPath": "Headers",
        "LibraryPath": library.name,
        "SupportedArchitectures": architectures,
        "SupportedPlatform": "ios",
    }
    if library.parent.name == "simulator":
        identifier += "-simulator"
        described["SupportedPlatformVariant"] = "simulator"
    described["BinaryPath"] = library.name
    described["LibraryIdentifier"] = identifier
    slices.append(described)
    shutil.copytree(headers, framework / identifier / "Headers")
    shutil.copy(library, framework / identifier)

contents = {
    "AvailableLibraries": slices,
    "CFBundlePackageType": "XFWK",
    "XCFrameworkFormatVersion": "1.0",
}
(framework / "Info.plist").write_bytes(plistlib.dumps(contents))
