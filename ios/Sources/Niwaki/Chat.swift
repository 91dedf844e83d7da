internal import NiwakiNative

/// A conversation. Made by ``Engine/chat(_:)``.
///
/// Messages go in through the model's chat template, replies stream out. What was computed for earlier turns is kept, so
/// that a reply computes only what is new.
public final class Chat: Sendable {
    private let handle: Handle<NiwakiNative.Chat>

    init(_ native: NiwakiNative.Chat) {
        handle = Handle(native, owner: "the chat")
    }

    /// Adds a `message` of the user and generates the reply.
    ///
    /// ```swift
    /// let reply = Task {
    ///     for try await token in chat.reply("Why is the sky blue?") { show(token.text) }
    /// }
    /// stopButton.action = { reply.cancel() }
    /// ```
    ///
    /// Nothing is computed before the stream is read. Cancelling the task that reads it, or leaving its loop, stops the
    /// work. When the reply ends, it joins the conversation. One that was cancelled joins it with the text that it had;
    /// without any, the message is taken back too.
    ///
    /// One reply of a chat is read at a time: another fails with ``NiwakiError/busy``. A stream that is kept in a
    /// variable goes on until it is read to its end, its task is cancelled, or the variable is gone.
    ///
    /// - Returns: A stream to read once; it throws ``NiwakiError``.
    public func reply(
        _ message: String,
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Token, any Error> {
        Generation.items { [handle] in
            try handle.begin { try $0.reply(message: message, options: options.toNative()) }
        }
    }

    /// The conversation so far.
    ///
    /// - Throws: ``NiwakiError/busy`` while a reply goes on.
    public func messages() async throws -> [Message] {
        try await blocking { [handle] in try handle.object().messages().map(Message.init) }
    }

    /// Replaces the conversation: to restore one, or to begin anew. What it has in common with the one before stays
    /// computed.
    ///
    /// - Throws: ``NiwakiError/busy`` while a reply goes on.
    public func setMessages(_ messages: [Message]) async throws {
        try await blocking { [handle] in
            try handle.object().setMessages(messages: messages.map { $0.toNative() })
        }
    }

    /// Frees the context. What is still generating ends within one layer's work, with
    /// ``NiwakiError/closed(details:)``. Letting go of the chat and its streams frees it, too.
    public func close() {
        handle.close()
    }
}

/// Who a ``Message`` is from.
public enum Role: String, Sendable, Codable {
    /// The app: how the model shall behave.
    case system

    /// The user.
    case user

    /// The model.
    case assistant
}

/// One message of a ``Chat``.
public struct Message: Sendable, Hashable, Codable {
    /// Who it is from.
    public let role: Role

    /// Its text.
    public let content: String

    /// A message of `role` that says `content`.
    public init(role: Role, content: String) {
        self.role = role
        self.content = content
    }

    /// A message of the app that says how the model shall behave.
    public static func system(_ content: String) -> Message { Message(role: .system, content: content) }

    /// A message of the user.
    public static func user(_ content: String) -> Message { Message(role: .user, content: content) }

    /// A message of the model.
    public static func assistant(_ content: String) -> Message { Message(role: .assistant, content: content) }

    init(_ native: NiwakiNative.Message) {
        switch native.role {
        case .system: role = .system
        case .user: role = .user
        case .assistant: role = .assistant
        }
        content = native.content
    }

    func toNative() -> NiwakiNative.Message {
        let role: NiwakiNative.Role =
            switch role {
            case .system: .system
            case .user: .user
            case .assistant: .assistant
            }
        return NiwakiNative.Message(role: role, content: content)
    }
}

extension Message: CustomStringConvertible {
    /// Without its text: what users write does not belong into logs.
    public var description: String { "Message(\(role), \(content.count) characters)" }
}
