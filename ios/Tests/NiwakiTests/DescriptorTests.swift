import Foundation
import Niwaki
import XCTest

/// A bundle may be a part of an open file.
final class DescriptorTests: XCTestCase {
    func testABundleOpensFromTheMiddleOfAFileAndTheDescriptorCanBeClosed() async throws {
        let bundle = try Data(contentsOf: demoModel)
        let before = 4096
        let url = try temporaryFolder(self).appendingPathComponent("assets.bin")
        try (Data(repeating: 7, count: before) + bundle + Data(repeating: 9, count: 1000)).write(to: url)
        let options = GenerateOptions(maxNewTokens: 10)
        let expected = try await openDemo().generate("Once", options: options).text()

        let file = try FileHandle(forReadingFrom: url)
        let fd = file.fileDescriptor
        let plan = try await Engine.plan(fileDescriptor: fd, offset: before, length: bundle.count, options: oneThread)
        let engines = [
            try await Engine.open(fileDescriptor: fd, offset: before, length: bundle.count, options: oneThread),
            try await Engine.open(fileDescriptor: fd, offset: before, options: oneThread),
        ]
        // It is still ours to close.
        try file.close()
        for engine in engines {
            XCTAssertEqual(engine.memoryPlan, plan)
            let text = try await engine.generate("Once", options: options).text()
            XCTAssertEqual(text, expected)
        }
    }

    func testALengthThatIsNotTheBundlesIsRefused() async throws {
        let file = try FileHandle(forReadingFrom: demoModel)
        defer { try? file.close() }
        let length = try Data(contentsOf: demoModel).count - 1
        let short = await failure { _ = try await Engine.open(fileDescriptor: file.fileDescriptor, length: length) }
        guard case .invalidBundle = short else { return XCTFail("\(String(describing: short))") }
        _ = await failure { _ = try await Engine.open(fileDescriptor: file.fileDescriptor, offset: 1) }
    }
}
