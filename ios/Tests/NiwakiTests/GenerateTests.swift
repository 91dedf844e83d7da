import Niwaki
import XCTest

final class GenerateTests: XCTestCase {
    override func setUp() async throws {
        try await nothingGenerates()
    }

    func testTextStreamsTokenByTokenAndEndsWithHowItEnded() async throws {
        let engine = try await openDemo()
        let options = GenerateOptions(maxNewTokens: 20, seed: 7)
        let tokens = try await engine.generate("Once upon a time", options: options).all()
        let finish = try XCTUnwrap(tokens.last?.finish)
        XCTAssertEqual(finish.reason, .maxTokens)
        XCTAssertEqual(finish.newTokens, 20)
        XCTAssertEqual(tokens.filter { $0.id != nil }.count, 20)
        XCTAssertTrue(tokens.dropLast().allSatisfy { $0.finish == nil })
        XCTAssertFalse(tokens.map(\.text).joined().isEmpty)
    }

    func testTheSameSeedTellsTheSameStoryAndAnotherOneAnother() async throws {
        let engine = try await openDemo()
        func story(_ seed: UInt64) async throws -> String {
            try await engine.generate("Once", options: GenerateOptions(maxNewTokens: 30, seed: seed)).text()
        }
        let first = try await story(1)
        let again = try await story(1)
        let other = try await story(2)
        XCTAssertEqual(first, again)
        XCTAssertNotEqual(first, other)
    }

    func testKeysAndValuesAreKeptAsAskedFor() async throws {
        func keptBytes(_ plan: MemoryPlan) throws -> Int {
            try XCTUnwrap(plan.parts.first { $0.name == "keys and values" }).sizeBytes
        }
        var bytes: [Int] = []
        for element in [KvElement.i8, .f16, .f32] {
            let engine = try await openDemo(OpenOptions(threads: 1, kv: element))
            let tokens = try await engine.generate("Once", options: GenerateOptions(maxNewTokens: 20)).all()
            XCTAssertEqual(tokens.filter { $0.id != nil }.count, 20)
            bytes.append(try keptBytes(engine.memoryPlan))
        }
        XCTAssertLessThan(bytes[0], bytes[1])
        XCTAssertLessThan(bytes[1], bytes[2])
        let usual = try await Engine.plan(demoModel, options: oneThread)
        XCTAssertEqual(try keptBytes(usual), bytes[1])
    }

    func testNothingIsComputedBeforeTheStreamIsRead() async throws {
        let engine = try await openDemo()
        let session = try await engine.session()
        let stream = session.generate("Once", options: endless)
        XCTAssertEqual(generatingThreads(), 0)
        let used = try await session.usedTokens()
        XCTAssertEqual(used, 0)
        _ = stream
    }

    func testAStreamIsReadOnce() async throws {
        let engine = try await openDemo()
        let stream = engine.generate("Once", options: greedy.limited(to: 5))
        let first = try await stream.all()
        XCTAssertFalse(first.isEmpty)
        let second = try await stream.all()
        XCTAssertTrue(second.isEmpty)
    }

    func testASessionGoesOnWhereItWasAndCanBeReset() async throws {
        let engine = try await openDemo()
        let session = try await engine.session()
        let options = greedy.limited(to: 5)
        let first = try await session.generate("Once upon a time", options: options).all()
        let used = try await session.usedTokens()
        XCTAssertGreaterThan(used, 5)
        let second = try await session.generate(" there was", options: options).all()
        XCTAssertEqual(second.last?.finish?.reusedTokens, used)
        let usedAfter = try await session.usedTokens()
        XCTAssertGreaterThan(usedAfter, used)
        try await session.reset()
        let usedAnew = try await session.usedTokens()
        XCTAssertEqual(usedAnew, 0)
        let anew = try await session.generate("Once upon a time", options: options).all()
        XCTAssertEqual(anew, first)
    }

    func testAStopStringEndsTheTextBeforeIt() async throws {
        let engine = try await openDemo()
        var options = greedy.limited(to: 60)
        let text = try await engine.generate("Once upon a time", options: options).text()
        let stop = String(text.dropFirst(text.count / 2).prefix(5))
        options.stopStrings = [stop]
        let stopped = try await engine.generate("Once upon a time", options: options).all()
        XCTAssertEqual(stopped.last?.finish?.reason, .stopString)
        let before = try XCTUnwrap(text.range(of: stop)).lowerBound
        XCTAssertEqual(stopped.map(\.text).joined(), String(text[..<before]))
    }

    func testSessionsGenerateSideBySideWhatTheyGenerateAlone() async throws {
        let engine = try await openDemo()
        @Sendable func story(_ seed: UInt64) async throws -> String {
            try await engine.generate("Once upon a time", options: GenerateOptions(maxNewTokens: 40, seed: seed)).text()
        }
        var alone: [UInt64: String] = [:]
        for seed in 0..<6 as Range<UInt64> { alone[seed] = try await story(seed) }
        let together = try await withThrowingTaskGroup(of: (UInt64, String).self) { group in
            for seed in 0..<6 as Range<UInt64> { group.addTask { (seed, try await story(seed)) } }
            return try await group.reduce(into: [:]) { $0[$1.0] = $1.1 }
        }
        XCTAssertEqual(alone, together)
    }

    func testMoreStreamsThanThreadsThatMayBlock() async throws {
        let engine = try await openDemo()
        let count = 100
        let texts = try await withThrowingTaskGroup(of: String.self) { group in
            for _ in 0..<count {
                group.addTask { try await engine.generate("Once", options: greedy.limited(to: 3)).text() }
            }
            return try await group.all()
        }
        XCTAssertEqual(texts.count, count)
        XCTAssertEqual(Set(texts).count, 1)
    }

    func testATokenIsNotPrintedWithItsText() async throws {
        let engine = try await openDemo()
        let tokens = try await engine.generate("Once", options: greedy.limited(to: 30)).all()
        let longest = try XCTUnwrap(tokens.max { $0.text.count < $1.text.count })
        XCTAssertGreaterThan(longest.text.count, 2)
        XCTAssertFalse("\(longest)".contains(longest.text), "\(longest)")
    }
}
