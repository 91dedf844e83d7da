import Foundation
import XCTest

@testable import Readme

/// What the project's README shows.
final class ReadmeTests: XCTestCase {
    func testTheProgramOfTheReadmeStreamsAReply() async throws {
        let pieces = Pieces()
        try await answer("Who was the king?", with: chatModel) { pieces.append($0) }.value
        XCTAssertGreaterThan(pieces.all.count, 2)
    }

    func testTheProgramOfTheReadmeCanBeCancelled() async throws {
        let begun = expectation(description: "a piece came")
        begun.assertForOverFulfill = false
        let reply = answer("Who was the king?", with: chatModel) { _ in begun.fulfill() }
        await fulfillment(of: [begun], timeout: 30)
        reply.cancel()
        _ = await reply.result
        try await nothingGenerates()
    }
}
