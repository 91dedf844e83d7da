import Foundation
import XCTest

@testable import Sample

/// What the sample does behind its screen.
// Sendable, since the list of tests that SwiftPM writes passes it to the main actor; it has no state.
@MainActor
final class SampleTests: XCTestCase, @unchecked Sendable {
    func testItOpensAModelAndTellsAStory() async throws {
        let model = WritingModel()
        XCTAssertFalse(model.canSend)
        await model.open(demoModel)
        XCTAssertNil(model.problem)
        XCTAssertNotNil(model.modelName)
        XCTAssertNotNil(model.memoryPlan)
        XCTAssertTrue(model.canSend)
        model.send("Once upon a time")
        XCTAssertTrue(model.isGenerating)
        XCTAssertFalse(model.canSend)
        await model.finish()
        XCTAssertFalse(model.isGenerating)
        XCTAssertFalse(model.text.isEmpty)
        XCTAssertNil(model.problem)
    }

    func testStopKeepsTheTextAndTheChatGoesOn() async throws {
        let model = WritingModel()
        await model.open(chatModel)
        model.send("Who was the king?")
        while model.text.isEmpty { await Task.yield() }
        model.stop()
        await model.finish()
        XCTAssertFalse(model.text.isEmpty)
        XCTAssertNil(model.problem)
        try await nothingGenerates()
        model.send("And the queen?")
        await model.finish()
        XCTAssertNil(model.problem)
    }

    func testAProblemSaysWhatToDo() async throws {
        let model = WritingModel()
        await model.open(try temporaryFolder(self).appendingPathComponent("none.niwaki"))
        let problem = try XCTUnwrap(model.problem)
        XCTAssertTrue(problem.hasSuffix("Get the model."), problem)
        XCTAssertFalse(model.canSend)
        await model.open(demoModel)
        XCTAssertNil(model.problem)
    }
}
