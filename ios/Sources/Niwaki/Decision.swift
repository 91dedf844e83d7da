internal import NiwakiNative

/// How a request was routed. It holds numbers and names, never text of users.
public struct Decision: Sendable, Hashable {
    /// Who answered, or began to; `nil` when nobody did.
    public let answeredBy: Backend?

    /// Why the backend that was asked first was; `nil` when none was asked.
    public let reason: RoutingReason?

    /// What was asked before, and why it did not answer.
    public let tried: [TriedBackend]

    /// The policy's mode.
    public let mode: RoutingMode

    /// Whether the request had to stay on the device.
    public let onDeviceOnly: Bool

    /// Tokens of the prompt, by the device's model.
    public let promptTokens: Int?

    /// Tokens that the device's context holds.
    public let contextTokens: Int?

    /// The policy's limit.
    public let maxLocalPromptTokens: Int?

    /// How long the device was expected to take to its first token.
    public let predictedFirstToken: Duration?

    /// How long the answer took to its first text, everything tried before included.
    public let firstText: Duration?

    init(_ native: NiwakiNative.Decision) {
        answeredBy = native.answeredBy.map(Backend.init)
        reason = native.reason.map(RoutingReason.init)
        tried = native.tried.map(TriedBackend.init)
        mode = RoutingMode(native.mode)
        onDeviceOnly = native.onDeviceOnly
        promptTokens = native.promptTokens.map(Int.init(clamping:))
        contextTokens = native.contextTokens.map(Int.init(clamping:))
        maxLocalPromptTokens = native.maxLocalPromptTokens.map(Int.init(clamping:))
        predictedFirstToken = native.predictedFirstTokenMs.map(Duration.init(milliseconds:))
        firstText = native.firstTextMs.map(Duration.init(milliseconds:))
    }
}

/// Who can answer. More may come: a `switch` over it has a `default`.
public struct Backend: Sendable, Hashable, CustomStringConvertible {
    /// Its name.
    public let description: String

    /// The model on the device.
    public static let local = Backend(description: "local")

    /// The endpoint.
    public static let cloud = Backend(description: "cloud")

    private init(description: String) {
        self.description = description
    }

    init(_ native: NiwakiNative.Backend) {
        switch native {
        case .local: self = .local
        case .cloud: self = .cloud
        }
    }
}

/// Why a backend is asked first. More may come: a `switch` over it has a `default`.
public enum RoutingReason: Sendable, Hashable {
    /// The policy's mode wants it.
    case mode

    /// The request may not leave the device.
    case onDeviceOnly

    /// There is no endpoint.
    case noEndpoint

    /// There is no model on the device.
    case noLocalModel

    /// The prompt is longer than the device should take.
    case promptOverLimit(promptTokens: Int, maxLocalPromptTokens: Int)

    /// The prompt leaves no room for an answer in the device's context.
    case promptOverContext(promptTokens: Int, contextTokens: Int)

    /// The device would take too long to its first token.
    case tooSlow(predicted: Duration, maxFirstToken: Duration)

    init(_ native: NiwakiNative.RoutingReason) {
        switch native {
        case .mode: self = .mode
        case .onDeviceOnly: self = .onDeviceOnly
        case .noEndpoint: self = .noEndpoint
        case .noLocalModel: self = .noLocalModel
        case .promptOverLimit(let promptTokens, let maxLocalPromptTokens):
            self = .promptOverLimit(
                promptTokens: Int(clamping: promptTokens),
                maxLocalPromptTokens: Int(clamping: maxLocalPromptTokens)
            )
        case .promptOverContext(let promptTokens, let contextTokens):
            self = .promptOverContext(
                promptTokens: Int(clamping: promptTokens),
                contextTokens: Int(clamping: contextTokens)
            )
        case .tooSlow(let predictedMs, let maxFirstTokenMs):
            self = .tooSlow(
                predicted: Duration(milliseconds: predictedMs),
                maxFirstToken: Duration(milliseconds: maxFirstTokenMs)
            )
        }
    }
}

/// A backend that was asked and did not answer.
public struct TriedBackend: Sendable, Hashable {
    /// Which backend.
    public let backend: Backend

    /// A name for why that stays the same over versions.
    public let code: String

    /// Why, in words for developers.
    public let details: String

    /// How often the request was sent.
    public let sent: Int

    /// How long it took to fail.
    public let took: Duration

    init(_ native: NiwakiNative.TriedBackend) {
        backend = Backend(native.backend)
        code = native.code
        details = native.details
        sent = Int(clamping: native.sent)
        took = Duration(milliseconds: native.tookMs)
    }
}
