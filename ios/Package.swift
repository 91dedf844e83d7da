// swift-tools-version: 6.0
import PackageDescription

// Apps link the XCFramework that build-xcframework.sh makes. The tests run on the machine that compiles them, with its
// own library, which test.sh builds and names here.
let hostLibraryFolder = Context.environment["NIWAKI_HOST_LIBRARY_FOLDER"]

let package = Package(
    name: "Niwaki",
    // What CNiwaki.xcframework has a library for.
    platforms: [.iOS(.v16)],
    products: [
        .library(name: "Niwaki", targets: ["Niwaki"])
    ],
    targets: [
        .target(
            name: "Niwaki",
            dependencies: ["NiwakiNative"],
            resources: [.process("PrivacyInfo.xcprivacy")],
            swiftSettings: [.enableUpcomingFeature("ExistentialAny")]
        ),
        // Written by generate-bindings.sh, from here on. The package keeps it to itself.
        .target(
            name: "NiwakiNative",
            dependencies: ["CNiwaki"],
            swiftSettings: [.swiftLanguageMode(.v5)]
        ),
    ]
)

if let hostLibraryFolder {
    package.targets += [
        .systemLibrary(name: "CNiwaki"),
        // What README.md of the project shows, and of the sample what needs no SwiftUI.
        .target(name: "Readme", dependencies: ["Niwaki"], path: "Tests/Readme"),
        .target(
            name: "Sample",
            dependencies: ["Niwaki"],
            path: "sample/NiwakiSample",
            exclude: ["NiwakiSampleApp.swift", "PrivacyInfo.xcprivacy", "WritingScreen.swift"]
        ),
        .testTarget(
            name: "NiwakiTests",
            dependencies: ["Niwaki", "NiwakiNative", "Readme", "Sample"],
            linkerSettings: [
                .linkedLibrary("niwaki_bindings"),
                .unsafeFlags(["-L", hostLibraryFolder, "-Xlinker", "-rpath", "-Xlinker", hostLibraryFolder]),
            ]
        ),
    ]
} else {
    package.targets.append(.binaryTarget(name: "CNiwaki", path: "CNiwaki.xcframework"))
}
