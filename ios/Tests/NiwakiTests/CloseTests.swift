import Foundation
import Niwaki
import XCTest

final class CloseTests: XCTestCase {
    /// Resident bytes of this process that no file backs.
    private func anonymousBytes() throws -> Int {
        let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
        let line = try XCTUnwrap(status.split(separator: "\n").first { $0.hasPrefix("RssAnon:") })
        return try XCTUnwrap(Int(line.filter(\.isNumber))) * 1024
    }

    func testAThousandEnginesOpenedAndClosedLeaveNoMemoryBehind() async throws {
        let options = OpenOptions(threads: 1, verifyWeights: false)
        func cycle(closing: Bool) async throws {
            let engine = try await openDemo(options)
            let session = try await engine.session()
            _ = try await session.generate("Once", options: greedy.limited(to: 1)).all()
            // Letting go does what closing does.
            if closing {
                session.close()
                engine.close()
            }
        }
        for round in 0..<200 { try await cycle(closing: round % 2 == 0) }
        let before = try anonymousBytes()
        for round in 0..<1000 { try await cycle(closing: round % 2 == 0) }
        let grown = try anonymousBytes() - before
        let one = try await Engine.plan(demoModel, options: oneThread).anonymousBytes
        print("1000 engines: \(grown / 1024) KiB more; one engine plans \(one / 1024) KiB")
        XCTAssertLessThan(grown, 8 << 20)
        try await eventually("no engine's file is mapped") {
            let maps = (try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8)) ?? demoModel.path
            return !maps.contains(demoModel.lastPathComponent)
        }
    }

    func testWhatWasClosedSaysSo() async throws {
        let engine = try await openDemo()
        let session = try await engine.session()
        engine.close()
        engine.close()
        for error in [
            await failure { _ = try await engine.session() },
            await failure { _ = try await engine.generate("Once").all() },
        ] {
            XCTAssertEqual(error, .closed(details: "the engine was closed"))
        }
        // A session keeps what it needs.
        _ = try await session.generate("Once", options: greedy.limited(to: 2)).all()
        session.close()
        session.close()
        for error in [
            await failure { _ = try await session.generate("Once").all() },
            await failure { _ = try await session.usedTokens() },
        ] {
            XCTAssertEqual(error, .closed(details: "the session was closed"))
        }
    }

    func testClosingInTheMiddleOfAGenerationEndsIt() async throws {
        for _ in 0..<20 {
            let engine = try await openDemo()
            let session = try await engine.session()
            let begun = expectation(description: "a token came")
            let closing = Gate()
            let reading = Task {
                var count = 0
                for try await _ in session.generate("Once", options: endless) {
                    count += 1
                    guard count == 1 else { continue }
                    begun.fulfill()
                    // The story must not be over before.
                    await closing.wait()
                }
            }
            await fulfillment(of: [begun], timeout: 30)
            engine.close()
            session.close()
            closing.open()
            let error = await failure { try await reading.value }
            XCTAssertEqual(error, .closed(details: "the session was closed"))
            try await nothingGenerates()
        }
    }

    func testAStreamKeepsWhatItNeeds() async throws {
        let stream = try await openDemo().session().generate("Once", options: greedy.limited(to: 3))
        let tokens = try await stream.all()
        XCTAssertEqual(tokens.last?.finish?.newTokens, 3)
    }
}
