import Foundation
import Niwaki
import XCTest

final class LogTests: XCTestCase {
    override func tearDownWithError() throws {
        try LogSink.set(.error, nil)
    }

    func testLinesComeWithLevelAndModuleAndWithoutTheUsersText() async throws {
        let lines = Pieces()
        try LogSink.set(.trace) { level, target, message in lines.append("\(level) \(target) \(message)") }
        _ = try await openDemo().generate("my secret", options: greedy.limited(to: 3)).all()
        XCTAssertTrue(lines.all.contains { $0.hasPrefix("info niwaki") && $0.contains("opened") }, "\(lines.all)")
        XCTAssertFalse(lines.all.contains { $0.contains("secret") }, "\(lines.all)")
    }

    func testLinesAboveTheLevelStayAway() async throws {
        let lines = Pieces()
        try LogSink.set(.error) { _, _, message in lines.append(message) }
        _ = try await openDemo()
        XCTAssertEqual(lines.all, [])
    }

    func testASinkMayTakeItselfAway() async throws {
        let lines = Pieces()
        try LogSink.set(.trace) { _, _, message in
            lines.append(message)
            try? LogSink.set(.error, nil)
        }
        _ = try await openDemo()
        _ = try await openDemo()
        XCTAssertEqual(lines.all.count, 1, "\(lines.all)")
    }
}
