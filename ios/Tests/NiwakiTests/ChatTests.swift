import Foundation
import Niwaki
import XCTest

final class ChatTests: XCTestCase {
    private let short = GenerateOptions(maxNewTokens: 8, sampling: .greedy)

    private func chat(_ messages: [Message] = []) async throws -> Chat {
        let engine = try await Engine.open(chatModel, options: oneThread)
        XCTAssertTrue(engine.canChat)
        return try await engine.chat(messages)
    }

    func testRepliesJoinTheConversationAndEarlierTurnsAreNotComputedAgain() async throws {
        let chat = try await chat([.system("Tell tales.")])
        let first = try await chat.reply("Who was the king?", options: short).all()
        let second = try await chat.reply("And the queen?", options: short).all()
        let messages = try await chat.messages()
        XCTAssertEqual(messages.map(\.role), [.system, .user, .assistant, .user, .assistant])
        XCTAssertEqual(messages.first?.content, "Tell tales.")
        XCTAssertEqual(messages[2].content, first.map(\.text).joined())
        let before = try XCTUnwrap(first.last?.finish)
        let after = try XCTUnwrap(second.last?.finish)
        XCTAssertEqual(before.reusedTokens, 0)
        XCTAssertGreaterThan(after.reusedTokens, 0)
        XCTAssertGreaterThan(after.promptTokens, before.promptTokens)
    }

    func testAConversationCanBeStored() async throws {
        let first = try await chat()
        _ = try await first.reply("Who was the king?", options: short).all()
        let stored = try JSONEncoder().encode(try await first.messages())
        let next = try await first.reply("And the queen?", options: short).text()

        let messages = try JSONDecoder().decode([Message].self, from: stored)
        let restored = try await chat(messages)
        let restoredMessages = try await restored.messages()
        XCTAssertEqual(restoredMessages, messages)
        let same = try await restored.reply("And the queen?", options: short).text()
        XCTAssertEqual(same, next)
        try await restored.setMessages(messages)
        let again = try await restored.reply("And the queen?", options: short).text()
        XCTAssertEqual(again, next)
    }

    func testAReplyThatIsCancelledLeavesTheChatUsable() async throws {
        let chat = try await chat()
        for try await token in chat.reply("Who was the king?") where !token.text.isEmpty { break }
        let roles = try await chat.messages().map(\.role)
        XCTAssertEqual(roles, [.user, .assistant])
        _ = try await chat.reply("And the queen?", options: short).all()
    }

    func testAModelWithoutAChatTemplateSaysSo() async throws {
        let engine = try await openDemo()
        XCTAssertFalse(engine.canChat)
        let error = await failure { _ = try await engine.chat() }
        guard case .noChat = error else { return XCTFail("\(String(describing: error))") }
    }

    func testAMessageIsNotPrintedWithItsText() {
        XCTAssertFalse("\(Message.user("my secret"))".contains("secret"))
    }
}
