import Foundation
import Niwaki
import XCTest

final class ErrorTests: XCTestCase {
    func testAFileThatIsNotThere() async throws {
        let url = try temporaryFolder(self).appendingPathComponent("none.niwaki")
        for error in [
            await failure { _ = try await Engine.open(url) },
            await failure { _ = try await Engine.plan(url) },
        ] {
            guard case .fileNotFound(let details) = error else { return XCTFail("\(String(describing: error))") }
            XCTAssertTrue(details.contains("No such file"), details)
        }
    }

    func testAURLThatIsNoFile() async throws {
        let url = try XCTUnwrap(URL(string: "https://example.com/model.niwaki"))
        let error = await failure { _ = try await Engine.open(url) }
        guard case .invalidArgument(let details) = error else { return XCTFail("\(String(describing: error))") }
        XCTAssertTrue(details.contains("https"), details)
    }

    func testAFolder() async throws {
        let folder = try temporaryFolder(self)
        let error = await failure { _ = try await Engine.open(folder) }
        guard case .fileUnreadable = error else { return XCTFail("\(String(describing: error))") }
    }

    func testAFileThatIsNoBundleOneThatIsCutOffOneWithAWrongBit() async throws {
        let url = try temporaryFolder(self).appendingPathComponent("damaged.niwaki")
        var bytes = try Data(contentsOf: demoModel)
        var flipped = bytes
        flipped[bytes.count / 2] ^= 4
        bytes.count /= 2
        for (damaged, word) in [(Data("once upon a time".utf8), ""), (bytes, ""), (flipped, "hash")] {
            try damaged.write(to: url)
            let error = await failure { _ = try await Engine.open(url) }
            guard case .invalidBundle(let details) = error else { return XCTFail("\(String(describing: error))") }
            XCTAssertTrue(word.isEmpty || details.contains(word), details)
        }
    }

    func testABundleOfAFormatToCome() async throws {
        let url = try temporaryFolder(self).appendingPathComponent("later.niwaki")
        var bytes = try Data(contentsOf: demoModel)
        bytes[8] += 1
        try bytes.write(to: url)
        let error = await failure { _ = try await Engine.open(url) }
        guard case .unsupportedBundle = error else { return XCTFail("\(String(describing: error))") }
    }

    func testAModelThatTakesMoreMemoryThanItMay() async throws {
        let error = await failure { _ = try await Engine.open(demoModel, options: OpenOptions(memoryLimitBytes: 1000)) }
        guard case .notEnoughMemory(let needed, let limit, _) = error else {
            return XCTFail("\(String(describing: error))")
        }
        let plan = try await Engine.plan(demoModel)
        XCTAssertEqual(limit, 1000)
        XCTAssertEqual(needed, plan.anonymousBytes)
        XCTAssertEqual(plan.parts.filter { !$0.isFileBacked }.map(\.sizeBytes).reduce(0, +), plan.anonymousBytes)
        XCTAssertEqual(plan.parts.filter(\.isFileBacked).map(\.sizeBytes).reduce(0, +), plan.fileBytes)
        let below = await failure {
            _ = try await Engine.open(demoModel, options: OpenOptions(memoryLimitBytes: plan.anonymousBytes - 1))
        }
        guard case .notEnoughMemory = below else { return XCTFail("\(String(describing: below))") }
        let engine = try await Engine.open(demoModel, options: OpenOptions(memoryLimitBytes: plan.anonymousBytes))
        XCTAssertEqual(engine.memoryPlan.anonymousBytes, plan.anonymousBytes)
    }

    func testAPromptThatTheContextHasNoRoomFor() async throws {
        let small = try await openDemo(OpenOptions(threads: 1, contextTokens: 8))
        XCTAssertEqual(small.contextTokens, 8)
        let long = String(repeating: "Once upon a time ", count: 9)
        let error = await failure { _ = try await small.generate(long).all() }
        guard case .contextFull(let needed, let context, _) = error else {
            return XCTFail("\(String(describing: error))")
        }
        XCTAssertEqual(context, 8)
        XCTAssertGreaterThan(needed, 8)

        let engine = try await openDemo()
        let refusing = GenerateOptions(maxNewTokens: 600, contextEnd: .refuse)
        let refused = await failure { _ = try await engine.generate("Once", options: refusing).all() }
        guard case .contextFull = refused else { return XCTFail("\(String(describing: refused))") }
    }

    func testAContextThatFillsUpEndsTheText() async throws {
        let engine = try await openDemo(OpenOptions(threads: 1, contextTokens: 16))
        let tokens = try await engine.generate("Once", options: greedy).all()
        XCTAssertEqual(tokens.last?.finish?.reason, .contextFull)
    }

    func testOptionsThatMakeNoSense() async throws {
        let engine = try await openDemo()
        for (options, word) in [
            (GenerateOptions(sampling: Sampling(temperature: -1)), "temperature"),
            (GenerateOptions(maxNewTokens: -1), "maxNewTokens -1"),
            (GenerateOptions(maxNewTokens: .max), "maxNewTokens"),
            (GenerateOptions(sampling: Sampling(topK: 0)), "topK 0"),
            (GenerateOptions(sampling: Sampling(repetitionPenalty: .init(factor: 1, lastTokens: -2))), "lastTokens"),
        ] {
            let error = await failure { _ = try await engine.generate("Once", options: options).all() }
            guard case .invalidArgument(let details) = error else { return XCTFail("\(String(describing: error))") }
            XCTAssertTrue(details.contains(word), details)
        }
        for options in [
            OpenOptions(threads: 0), OpenOptions(memoryLimitBytes: -1), OpenOptions(contextTokens: 0),
            OpenOptions(contextTokens: -3), OpenOptions(threads: -1), OpenOptions(threads: 100_000), OpenOptions(threads: .max),
        ] {
            let error = await failure { _ = try await Engine.open(demoModel, options: options) }
            guard case .invalidArgument = error else { return XCTFail("\(String(describing: error))") }
        }
        for (offset, length) in [(-1, nil), (0, -1)] as [(Int, Int?)] {
            let error = await failure { _ = try await Engine.open(fileDescriptor: 0, offset: offset, length: length) }
            guard case .invalidArgument = error else { return XCTFail("\(String(describing: error))") }
        }
    }

    func testRoutersAndEndpointsThatMakeNoSense() async throws {
        for (timeouts, retry, policy) in [
            (EndpointTimeouts(connect: .seconds(-1)), EndpointRetry(), RoutingPolicy()),
            (EndpointTimeouts(), EndpointRetry(maxRetries: -1), RoutingPolicy()),
            (EndpointTimeouts(), EndpointRetry(backoff: .seconds(-1)), RoutingPolicy()),
            (EndpointTimeouts(), EndpointRetry(), RoutingPolicy(maxLocalPromptTokens: -1)),
            (EndpointTimeouts(), EndpointRetry(), RoutingPolicy(maxFirstToken: .seconds(-1))),
        ] {
            let endpoint = Endpoint("https://api.example.com", model: "large", timeouts: timeouts, retry: retry)
            let error = await failure { _ = try await Router(policy, endpoint: endpoint) }
            guard case .invalidArgument = error else { return XCTFail("\(String(describing: error))") }
        }
        let router = try await Router()
        let negative = await failure { _ = try router.predictFirstToken(promptTokens: -1) }
        guard case .invalidArgument = negative else { return XCTFail("\(String(describing: negative))") }
    }

    /// Swift itself reads half a surrogate pair as U+FFFD: a string that holds one cannot be made.
    func testHalfAnEmojiIsTextLikeAnyOtherThatIsNot() async throws {
        let half = String(decoding: [0x61, 0xD83D] as [UInt16], as: UTF16.self)
        XCTAssertEqual(half, "a\u{FFFD}")
        let engine = try await openDemo()
        let options = greedy.limited(to: 3)
        let text = try await engine.generate(half, options: options).text()
        let expected = try await engine.generate("a\u{FFFD}", options: options).text()
        XCTAssertEqual(text, expected)
    }

    func testTwoStreamsOfOneSessionAtOnce() async throws {
        let engine = try await openDemo()
        let session = try await engine.session()
        for try await _ in session.generate("Once", options: greedy.limited(to: 50)) {
            let second = await failure { _ = try await session.generate("Once").all() }
            XCTAssertEqual(second, .busy)
            let used = await failure { _ = try await session.usedTokens() }
            XCTAssertEqual(used, .busy)
            break
        }
        _ = try await session.generate("Once", options: greedy.limited(to: 2)).all()
    }

    func testAFileDescriptorThatIsNone() async throws {
        let negative = await failure { _ = try await Engine.open(fileDescriptor: -1) }
        guard case .invalidArgument = negative else { return XCTFail("\(String(describing: negative))") }
        let closed = await failure { _ = try await Engine.open(fileDescriptor: 9999) }
        guard case .fileUnreadable = closed else { return XCTFail("\(String(describing: closed))") }
    }

    func testAnErrorSaysWhatCanBeDone() async throws {
        let url = try temporaryFolder(self).appendingPathComponent("none.niwaki")
        let failed = await failure { _ = try await Engine.open(url) }
        let error = try XCTUnwrap(failed)
        XCTAssertEqual(error.localizedDescription, error.details)
        XCTAssertEqual(error.recoverySuggestion, "Get the model.")
        XCTAssertEqual("\(error)", "\(error.details). Get the model.")
    }
}
