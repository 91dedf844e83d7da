import NiwakiNative
import XCTest

@testable import Niwaki

private let longPrompt = String(repeating: "Once upon a time there was a king. ", count: 45)

private func nativeSession() throws -> NiwakiNative.Session {
    try NiwakiNative.Engine.open(source: .path(path: demoModel.path), options: oneThread.toNative()).session()
}

/// A stream of the face over a native one that the test watches.
private final class Watched: Sendable {
    private let begun = Locked<NiwakiNative.TokenStream?>(nil)

    var stream: NiwakiNative.TokenStream? { begun.withLock { $0 } }
    var operatorsBegun: UInt64 { stream?.operatorsBegun() ?? 0 }

    func tokens(
        of session: NiwakiNative.Session,
        after prompt: String
    ) -> AsyncThrowingStream<Niwaki.Token, any Error> {
        Generation.items {
            let stream = try session.generate(text: prompt, options: endless.toNative())
            self.begun.withLock { $0 = stream }
            return .init(stream: stream, closedError: { nil }, forget: {})
        }
    }
}

final class CancellationTests: XCTestCase {
    override func setUp() async throws {
        try await nothingGenerates()
    }

    func testLeavingTheLoopEndsTheNativeWork() async throws {
        let engine = try await openDemo()
        var count = 0
        for try await _ in engine.generate("Once", options: endless) {
            count += 1
            if count == 3 { break }
        }
        try await nothingGenerates()
    }

    func testLettingGoOfAStreamEndsTheNativeWork() async throws {
        let engine = try await openDemo()
        var stream: AsyncThrowingStream? = engine.generate("Once", options: endless)
        for try await _ in try XCTUnwrap(stream) { break }
        XCTAssertEqual(generatingThreads(), 1)
        stream = nil
        try await nothingGenerates()
    }

    func testCancellingTheTaskEndsTheLoopAndTheNativeWork() async throws {
        let engine = try await openDemo()
        let begun = expectation(description: "a token came")
        let cancelling = Gate()
        let reading = Task {
            var tokens: [Niwaki.Token] = []
            for try await token in engine.generate("Once", options: endless) {
                tokens.append(token)
                guard tokens.count == 1 else { continue }
                begun.fulfill()
                // The story must not be over before.
                await cancelling.wait()
            }
            return tokens
        }
        await fulfillment(of: [begun], timeout: 30)
        reading.cancel()
        cancelling.open()
        let tokens = try await reading.value
        XCTAssertEqual(tokens.count, 1)
        XCTAssertNil(tokens.last?.finish, "a loop that was cut short says no finish")
        try await nothingGenerates()
    }

    func testCancellingATaskThatDoesNotTakeTokensEndsTheNativeWork() async throws {
        let engine = try await openDemo()
        let begun = expectation(description: "a token came")
        let reading = Task {
            for try await _ in engine.generate("Once", options: endless) {
                begun.fulfill()
                try await Task.sleep(nanoseconds: 3_600_000_000_000)
            }
        }
        await fulfillment(of: [begun], timeout: 30)
        XCTAssertEqual(generatingThreads(), 1)
        reading.cancel()
        _ = await reading.result
        try await nothingGenerates()
    }

    func testATaskThatWasCancelledBeforeBeginsNothing() async throws {
        let engine = try await openDemo()
        let reading = Task {
            while !Task.isCancelled { await Task.yield() }
            return try await engine.generate("Once", options: endless).all().count
        }
        reading.cancel()
        let count = try await reading.value
        XCTAssertEqual(count, 0)
        XCTAssertEqual(generatingThreads(), 0)
    }

    func testTheTextOfACancelledTaskIsNoText() async throws {
        let engine = try await openDemo()
        try await inTime("a text") {
            let reading = Task { try await engine.generate(longPrompt, options: endless).text() }
            try await Task.sleep(nanoseconds: 2_000_000)
            reading.cancel()
            switch await reading.result {
            case .success: return false
            case .failure(let error): return error is CancellationError
            }
        }
    }

    func testCancellingInPrefillLeavesThePromptUncomputed() async throws {
        let session = try nativeSession()
        try await inTime("a prefill") {
            try session.reset()
            let watched = Watched()
            let reading = Task { try await watched.tokens(of: session, after: longPrompt).all() }
            try await eventually("the prefill began") { watched.operatorsBegun > 0 }
            reading.cancel()
            // The work has ended when the loop has: what it began does not grow any more.
            _ = try await reading.value
            let begun = watched.operatorsBegun
            try await nothingGenerates()
            XCTAssertEqual(watched.operatorsBegun, begun)
            return try session.lenTokens() == 0
        }
    }

    func testCancellingInPrefillSparesMostOfItsOperators() async throws {
        let session = try nativeSession()
        func prefill(cancelling: Bool) async throws -> UInt64 {
            try session.reset()
            let watched = Watched()
            let reading = Task {
                for try await _ in watched.tokens(of: session, after: longPrompt) { return watched.operatorsBegun }
                return watched.operatorsBegun
            }
            if cancelling {
                try await eventually("the prefill began") { watched.operatorsBegun > 0 }
                reading.cancel()
            }
            return try await reading.value
        }
        let whole = try await prefill(cancelling: false)
        try await inTime("a prefill") {
            let begun = try await prefill(cancelling: true)
            print("prefill: \(begun) operators begun when cancelled, \(whole) when not")
            return begun < whole / 2
        }
    }

    func testASlowReaderHoldsTheEngineBack() async throws {
        let session = try nativeSession()
        // As many operators as a prompt of one token and two more tokens take, however long nobody reads.
        let short = try session.generate(text: "Once", options: endless.limited(to: 2).toNative())
        while try short.next() != nil {}
        let two = short.operatorsBegun()
        try session.reset()

        let watched = Watched()
        var iterator = watched.tokens(of: session, after: "Once").makeAsyncIterator()
        _ = try await iterator.next()
        try await eventually("the second token waits") { watched.operatorsBegun == two }
        try await Task.sleep(nanoseconds: 200_000_000)
        XCTAssertEqual(watched.operatorsBegun, two)
    }

    func testASessionIsAsGoodAsNewAfterACancellation() async throws {
        let engine = try await openDemo()
        let session = try await engine.session()
        let options = greedy.limited(to: 10)
        let before = try await session.generate("Once", options: options).text()
        for _ in 0..<20 {
            for try await _ in session.generate(" and", options: endless) { break }
            try await session.reset()
        }
        let after = try await session.generate("Once", options: options).text()
        XCTAssertEqual(after, before)
    }

    /// On a busy machine work may be over before it is cancelled: tries again.
    private func inTime(_ what: String, _ cut: () async throws -> Bool) async throws {
        for _ in 0..<50 {
            if try await cut() { return }
        }
        throw NeverCame(what: "\(what) was cut short")
    }
}
