internal import NiwakiNative

/// How to open a bundle.
public struct OpenOptions: Sendable, Hashable {
    /// Threads that compute, at most 256; `nil` takes the number of fast cores.
    public var threads: Int?

    /// Opening fails with ``NiwakiError/notEnoughMemory(neededBytes:limitBytes:details:)`` when the model needs more.
    public var memoryLimitBytes: Int?

    /// Cap on the context; the model's own when `nil` or larger.
    public var contextTokens: Int?

    /// What the numbers of the context's keys and values are kept as: a smaller one makes room for a longer context; `nil`
    /// takes ``KvElement/f16``, or ``KvElement/f32`` for a model whose weights all are.
    public var kv: KvElement?

    /// Compares the whole file with its hashes, which reads it once. Turn it off for a file that was verified before and
    /// lies where only the app writes.
    public var verifyWeights: Bool

    /// Says how to open a bundle; each option is explained where it is declared.
    public init(
        threads: Int? = nil,
        memoryLimitBytes: Int? = nil,
        contextTokens: Int? = nil,
        kv: KvElement? = nil,
        verifyWeights: Bool = true
    ) {
        self.threads = threads
        self.memoryLimitBytes = memoryLimitBytes
        self.contextTokens = contextTokens
        self.kv = kv
        self.verifyWeights = verifyWeights
    }

    func toNative() throws -> NiwakiNative.OpenOptions {
        NiwakiNative.OpenOptions(
            threads: try threads.map { try exact($0, from: 1, "threads") } ?? 0,
            memoryLimitBytes: try memoryLimitBytes.map { try exact($0, "memoryLimitBytes") },
            contextTokens: try contextTokens.map { try exact($0, from: 1, "contextTokens") },
            kv: kv?.toNative(),
            verifyWeights: verifyWeights
        )
    }
}

/// What a number of a context's keys and values is kept as.
public enum KvElement: Sendable, Hashable {
    /// 8-bit integers with scales: about half of the memory of ``f16``, at hardly any loss.
    case i8

    /// Half precision.
    case f16

    /// Single precision: twice the memory of ``f16``.
    case f32

    func toNative() -> NiwakiNative.KvElement {
        switch self {
        case .i8: .i8
        case .f16: .f16
        case .f32: .f32
        }
    }
}

/// How to generate.
public struct GenerateOptions: Sendable, Hashable {
    /// Most tokens to generate.
    public var maxNewTokens: Int

    /// How the next token is chosen; `nil` takes the model's own defaults.
    public var sampling: Sampling?

    /// What the random numbers follow from: the same seed gives the same text on every device.
    public var seed: UInt64

    /// Texts that end the generation wherever they come up in it. They are not given out.
    public var stopStrings: [String]

    /// What happens when the context has no room left.
    public var contextEnd: ContextEnd

    /// Says how to generate; each option is explained where it is declared.
    public init(
        maxNewTokens: Int = 256,
        sampling: Sampling? = nil,
        seed: UInt64 = 0,
        stopStrings: [String] = [],
        contextEnd: ContextEnd = .stop
    ) {
        self.maxNewTokens = maxNewTokens
        self.sampling = sampling
        self.seed = seed
        self.stopStrings = stopStrings
        self.contextEnd = contextEnd
    }

    func toNative() throws -> NiwakiNative.GenerateOptions {
        NiwakiNative.GenerateOptions(
            maxNewTokens: try exact(maxNewTokens, "maxNewTokens"),
            sampling: try sampling?.toNative(),
            seed: seed,
            stopStrings: stopStrings,
            contextEnd: contextEnd.toNative()
        )
    }
}

/// How the next token is chosen: repetition penalty, temperature, top-k, top-p and min-p in this order, then a draw.
public struct Sampling: Sendable, Hashable {
    /// Softmax temperature; 0 always takes the most likely token.
    public var temperature: Float

    /// Only this many of the most likely tokens are chosen from.
    public var topK: Int?

    /// Only the most likely tokens that together reach this probability are chosen from.
    public var topP: Float?

    /// Only tokens with at least this share of the most likely token's probability are chosen from.
    public var minP: Float?

    /// Makes tokens less likely that the context holds already.
    public var repetitionPenalty: RepetitionPenalty?

    /// Always the most likely token.
    public static let greedy = Sampling(temperature: 0)

    /// Says how the next token is chosen; each option is explained where it is declared.
    public init(
        temperature: Float = 1,
        topK: Int? = nil,
        topP: Float? = nil,
        minP: Float? = nil,
        repetitionPenalty: RepetitionPenalty? = nil
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
    }

    func toNative() throws -> NiwakiNative.Sampling {
        NiwakiNative.Sampling(
            temperature: temperature,
            topK: try topK.map { try exact($0, from: 1, "topK") },
            topP: topP,
            minP: minP,
            repetitionPenalty: try repetitionPenalty?.toNative()
        )
    }
}

/// Makes tokens less likely that the context holds already.
public struct RepetitionPenalty: Sendable, Hashable {
    /// 1 changes nothing, more makes repetition rarer.
    public var factor: Float

    /// Only the last so many tokens of the context count; all when `nil`.
    public var lastTokens: Int?

    /// A penalty of `factor` for the last `lastTokens` tokens, or for all.
    public init(factor: Float, lastTokens: Int? = nil) {
        self.factor = factor
        self.lastTokens = lastTokens
    }

    func toNative() throws -> NiwakiNative.RepetitionPenalty {
        NiwakiNative.RepetitionPenalty(
            factor: factor,
            lastTokens: try lastTokens.map { try exact($0, "lastTokens") }
        )
    }
}

/// What happens when the context has no room left.
public enum ContextEnd: Sendable, Hashable {
    /// Generate as long as there is room, then end with ``FinishReason/contextFull``.
    case stop

    /// Fail with ``NiwakiError/contextFull(neededTokens:contextTokens:details:)`` at once unless the prompt and all new
    /// tokens have room.
    case refuse

    /// Forget the oldest and go on: a chat leaves out its oldest turns, a session the older half of its text.
    case forgetOldest

    func toNative() -> NiwakiNative.ContextEnd {
        switch self {
        case .stop: .stop
        case .refuse: .refuse
        case .forgetOldest: .forgetOldest
        }
    }
}

/// The same number in the native side's type.
func exact<Number: FixedWidthInteger>(_ value: Int, from least: Int = 0, _ name: String) throws -> Number {
    guard value >= least, let number = Number(exactly: value) else {
        let range = "\(least) to \(Swift.min(UInt64(Number.max), UInt64(Int.max)))"
        throw NiwakiError.invalidArgument(details: "\(name) \(value) is not in \(range)")
    }
    return number
}
