internal import NiwakiNative

/// One item of a generation's stream.
public struct Token: Sendable, Hashable {
    /// The text that is certain with this token: whole characters, often none.
    public let text: String

    /// The token's number in the model's vocabulary; `nil` for text that comes after the last token.
    public let id: Int?

    /// How the generation ended: set in the last item of the stream, and only there. A stream that was cancelled ends
    /// without it.
    public let finish: Finish?

    /// How likely the model found the token, where ``GenerateOptions/logProbs`` asks for that.
    public let logProbs: LogProbs?

    init(text: String, id: Int? = nil, finish: Finish? = nil, logProbs: LogProbs? = nil) {
        self.logProbs = logProbs
        self.text = text
        self.id = id
        self.finish = finish
    }

    init(_ native: NiwakiNative.Token) {
        self.init(text: native.text, id: native.id.map(Int.init), logProbs: native.logProbs.map(LogProbs.init))
    }
}

extension NiwakiNative.TokenStream: NativeStream {
    func nextItem() throws -> Token? { try next().map(Token.init) }

    func lastItem() -> Token? { finish().flatMap(Finish.init).map { Token(text: "", finish: $0) } }
}

extension Token: CustomStringConvertible {
    /// Without its text: what models write does not belong into logs.
    public var description: String {
        let id = id.map(String.init) ?? "nil"
        let finish = finish.map { "\($0)" } ?? "nil"
        return "Token(id: \(id), \(text.count) characters, finish: \(finish))"
    }
}

/// Natural logarithms of the model's own probabilities, before penalties, temperature and cuts.
public struct LogProbs: Sendable, Hashable {
    /// Of a token.
    public struct Entry: Sendable, Hashable {
        /// The token.
        public let token: Int

        /// Its logarithm.
        public let logProb: Float
    }

    /// Of the chosen token.
    public let chosen: Float

    /// Of the most likely tokens, best first.
    public let best: [Entry]

    init(_ native: NiwakiNative.LogProbs) {
        chosen = native.chosen
        best = native.best.map { Entry(token: Int($0.token), logProb: $0.logProb) }
    }
}

/// How a generation ended.
public struct Finish: Sendable, Hashable {
    /// Why it ended.
    public let reason: FinishReason

    /// Tokens of the prompt, all earlier turns included.
    public let promptTokens: Int

    /// Tokens of the prompt that had been computed before.
    public let reusedTokens: Int

    /// Tokens that were generated.
    public let newTokens: Int

    /// `nil` for one that did not come to an end.
    init?(_ native: NiwakiNative.Finish) {
        guard let reason = FinishReason(native.reason) else { return nil }
        self.reason = reason
        promptTokens = Int(clamping: native.promptTokens)
        reusedTokens = Int(clamping: native.reusedTokens)
        newTokens = Int(clamping: native.newTokens)
    }
}

/// Why a generation ended. More may come: a `switch` over it has a `default`.
public struct FinishReason: Sendable, Hashable, CustomStringConvertible {
    /// Its name.
    public let description: String

    /// As many tokens as were asked for.
    public static let maxTokens = FinishReason(description: "maxTokens")

    /// As much time as was given.
    public static let maxTime = FinishReason(description: "maxTime")

    /// The model ended its text.
    public static let endOfText = FinishReason(description: "endOfText")

    /// One of the stop strings came.
    public static let stopString = FinishReason(description: "stopString")

    /// The context is full.
    public static let contextFull = FinishReason(description: "contextFull")

    private init(description: String) {
        self.description = description
    }

    /// No token was allowed to follow.
    public static let nothingAllowed = FinishReason(description: "nothingAllowed")

    /// A filter ended the text.
    public static let filtered = FinishReason(description: "filtered")

    init?(_ native: NiwakiNative.FinishReason) {
        switch native {
        case .maxTokens: self = .maxTokens
        case .maxTime: self = .maxTime
        case .endOfText: self = .endOfText
        case .stopString: self = .stopString
        case .contextFull: self = .contextFull
        case .nothingAllowed: self = .nothingAllowed
        case .filtered: self = .filtered
        case .cancelled, .failed: return nil
        }
    }
}

extension AsyncSequence where Element == Token {
    /// Collects the whole text of a generation.
    ///
    /// ```swift
    /// let story = try await engine.generate("Once upon a time").text()
    /// ```
    ///
    /// - Throws: ``NiwakiError``, or `CancellationError` when the task was cancelled before the text was whole.
    public func text() async throws -> String {
        var text = ""
        for try await token in self { text += token.text }
        try Task.checkCancellation()
        return text
    }
}
