import Foundation
internal import NiwakiNative

/// Answers requests with the model on the device or from an endpoint, as its ``RoutingPolicy`` says, and tells why.
///
/// ```swift
/// let endpoint = Endpoint("https://api.example.com", model: "large-model") { try await keys.current() }
/// let router = try await Router(RoutingPolicy(maxLocalPromptTokens: 2000), engine: engine, endpoint: endpoint)
/// for try await token in router.answer([.user(question)], onDeviceOnly: isPrivate) {
///     show(token.text)
///     if token.finish != nil { log(token.decision) }
/// }
/// ```
///
/// May be used from any task. On the device it is one conversation: requests are answered one after the other, and what a
/// prompt has in common with the one before is not computed again. A stream of the device that is read holds the next one
/// up until it ends, so do not read one inside the other's loop.
public final class Router: Sendable {
    private let handle: Handle<NiwakiNative.Router>

    /// A router between the model of `engine` and `endpoint`; either may be missing.
    ///
    /// Nothing is opened or resolved before the first request that goes to the endpoint. The model stays open until the
    /// router is closed or gone.
    ///
    /// - Throws: ``NiwakiError/noChat(details:)`` when the model has no chat template that works,
    ///   ``NiwakiError/invalidArgument(details:)`` for an endpoint that is no URL, or that would send text unencrypted.
    public init(
        _ policy: RoutingPolicy = RoutingPolicy(),
        engine: Engine? = nil,
        endpoint: Endpoint? = nil
    ) async throws {
        let native = try await blocking {
            return try NiwakiNative.Router(
                policy: policy.toNative(),
                engine: engine?.native(),
                endpoint: endpoint?.toNative(),
                apiKey: endpoint.map { KeySource($0.apiKey) },
                transport: endpoint.map { AppTransport($0.transport) }
            )
        }
        handle = Handle(native, owner: "the router")
    }

    /// Answers a conversation, the last of whose messages is usually the user's.
    ///
    /// Nothing is computed or sent before the stream is read. Cancelling the task that reads it, or leaving its loop, stops
    /// the device and closes the connection.
    ///
    /// With `onDeviceOnly` the request stays on the device whatever the policy says: the endpoint's transport and key are
    /// not touched for it.
    ///
    /// A backend that fails before its first text is followed by the other one where the policy allows that; an answer that
    /// has begun is never begun anew.
    ///
    /// - Returns: A stream to read once; it throws ``RoutingError``.
    public func answer(
        _ messages: [Message],
        options: GenerateOptions = GenerateOptions(),
        onDeviceOnly: Bool = false
    ) -> AsyncThrowingStream<RoutedToken, any Error> {
        Generation.items { [handle] in
            do {
                let request = NiwakiNative.RouteRequest(
                    messages: messages.map { $0.toNative() },
                    options: try options.toNative(),
                    onDeviceOnly: onDeviceOnly
                )
                return try native { try handle.begin { NativeAnswer(try $0.answer(request: request)) } }
            } catch let error as NiwakiError {
                throw RoutingError(cause: error, decision: nil)
            }
        }
    }

    /// How long the device is expected to take to the first token of such a prompt, by the speed of the prompts before;
    /// `nil` before the first.
    ///
    /// - Throws: ``NiwakiError/closed(details:)``.
    public func predictFirstToken(promptTokens: Int) throws -> Duration? {
        let milliseconds = try handle.object().predictFirstTokenMs(promptTokens: exact(promptTokens, "promptTokens"))
        return milliseconds.map(Duration.init(milliseconds:))
    }

    /// Frees the context. What still answers ends, with ``NiwakiError/closed(details:)``. Letting go of the router and its
    /// streams frees it, too.
    public func close() {
        handle.close()
    }
}

/// A part of an answer.
public struct RoutedToken: Sendable, Hashable {
    /// The text that came: whole characters, none in the last item.
    public let text: String

    /// Who answers, and why. Complete in the last item.
    public let decision: Decision

    /// How the answer ended: set in the last item of the stream, and only there. A stream that was cancelled ends without
    /// it.
    public let finish: RoutedFinish?
}

extension RoutedToken: CustomStringConvertible {
    /// Without its text: what models write does not belong into logs.
    public var description: String {
        let finish = finish.map { "\($0)" } ?? "nil"
        return "RoutedToken(\(text.count) characters, finish: \(finish), decision: \(decision))"
    }
}

extension AsyncSequence where Element == RoutedToken {
    /// Collects the whole text of an answer.
    ///
    /// - Throws: ``RoutingError``, or `CancellationError` when the task was cancelled before the text was whole.
    public func text() async throws -> String {
        var text = ""
        for try await token in self { text += token.text }
        try Task.checkCancellation()
        return text
    }
}

/// How a routed answer ended.
public struct RoutedFinish: Sendable, Hashable {
    /// Why it ended.
    public let reason: FinishReason

    /// Why, in the endpoint's words: `stop`, `length`, `content_filter`; `nil` on the device.
    public let cloudReason: String?

    /// Tokens of the prompt as the endpoint counted them; `nil` on the device.
    public let cloudPromptTokens: Int?

    /// Tokens of the answer as the endpoint counted them; `nil` on the device.
    public let cloudNewTokens: Int?

    /// `nil` for one that did not come to an end.
    init?(_ native: NiwakiNative.RoutedFinish) {
        guard let reason = FinishReason(native.reason) else { return nil }
        self.reason = reason
        cloudReason = native.cloudReason
        cloudPromptTokens = native.cloudPromptTokens.map(Int.init(clamping:))
        cloudNewTokens = native.cloudNewTokens.map(Int.init(clamping:))
    }
}

/// Why a ``Router`` gave no answer, or not all of it.
public struct RoutingError: Error, Sendable, Hashable {
    /// What went wrong.
    public let cause: NiwakiError

    /// How the request was routed; `nil` when it was not.
    public let decision: Decision?
}

extension RoutingError: LocalizedError, CustomStringConvertible {
    /// What, where and why.
    public var errorDescription: String? { cause.errorDescription }

    /// What can be done about it, in English.
    public var recoverySuggestion: String? { cause.recoverySuggestion }

    /// The cause's.
    public var description: String { cause.description }
}

/// A native answer, with the record as it was with the first text.
private final class NativeAnswer: NativeStream {
    private let native: NiwakiNative.RoutedStream
    private let first = Locked<Decision?>(nil)

    init(_ native: NiwakiNative.RoutedStream) {
        self.native = native
    }

    func nextItem() throws -> RoutedToken? {
        guard let text = try native.next(), let decision = begun() else { return nil }
        return RoutedToken(text: text, decision: decision, finish: nil)
    }

    func cancel() {
        native.cancel()
    }

    func lastItem() -> RoutedToken? {
        guard let decision = native.decision(), let finish = native.finish().flatMap(RoutedFinish.init) else { return nil }
        return RoutedToken(text: "", decision: Decision(decision), finish: finish)
    }

    func error(_ error: any Error) -> any Error {
        guard let cause = error as? NiwakiError else { return error }
        return RoutingError(cause: cause, decision: native.decision().map(Decision.init))
    }

    private func begun() -> Decision? {
        first.withLock { first in
            if first == nil { first = native.decision().map(Decision.init) }
            return first
        }
    }
}
