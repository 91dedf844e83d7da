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

    /// No token is begun when so much time has passed; the end is then ``FinishReason/maxTime``.
    public var maxTime: Duration?

    /// How the next token is chosen; `nil` takes the model's own defaults.
    public var sampling: Sampling?

    /// What the random numbers follow from: the same seed gives the same text on every device.
    public var seed: UInt64

    /// Tokens come with ``Token/logProbs``: of the chosen one and so many of the best.
    public var logProbs: Int?

    /// Tokens that end the generation, besides the model's own.
    public var stopTokens: [Int]

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
        contextEnd: ContextEnd = .stop,
        maxTime: Duration? = nil,
        logProbs: Int? = nil,
        stopTokens: [Int] = []
    ) {
        self.maxTime = maxTime
        self.logProbs = logProbs
        self.stopTokens = stopTokens
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
            maxTimeMs: try maxTime.map { try $0.wholeMilliseconds("maxTime") },
            logProbs: try logProbs.map { try exact($0, "logProbs") },
            stopTokens: try stopTokens.map { try exact($0, "stopTokens") },
            stopStrings: stopStrings,
            contextEnd: contextEnd.toNative()
        )
    }
}

/// How the next token is chosen: constraints, penalties, temperature and cuts, then a draw. `docs/decoding.md` explains
/// each.
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

    /// Tokens that never come, whatever else is asked for.
    public var bannedTokens: [Int]

    /// What is generated begins with these tokens.
    public var forcedTokens: [Int]

    /// No run of so many tokens comes twice, the prompt included.
    public var noRepeatNgram: Int?

    /// Added to the logits of tokens; minus infinity bans.
    public var logitBias: [Int: Float]

    /// Taken from a token's logit for each time it was generated; 0 changes nothing.
    public var frequencyPenalty: Float

    /// Taken once from the logit of a token that was generated; 0 changes nothing.
    public var presencePenalty: Float

    /// Makes what would go on with a repetition less likely, the more the longer it is.
    public var dry: Dry?

    /// Only tokens whose logit is at most so many standard deviations below the best one's are chosen from.
    public var topNSigma: Float?

    /// Only tokens whose surprise is nearest to the expected one, which together reach this probability, are
    /// chosen from.
    public var typicalP: Float?

    /// Leaves out the most likely tokens now and then.
    public var xtc: Xtc?

    /// Holds the surprise of the text near a goal.
    public var mirostat: Mirostat?

    /// Always the most likely token.
    public static let greedy = Sampling(temperature: 0)

    /// Says how the next token is chosen; each option is explained where it is declared.
    public init(
        temperature: Float = 1,
        topK: Int? = nil,
        topP: Float? = nil,
        minP: Float? = nil,
        repetitionPenalty: RepetitionPenalty? = nil,
        bannedTokens: [Int] = [],
        forcedTokens: [Int] = [],
        noRepeatNgram: Int? = nil,
        logitBias: [Int: Float] = [:],
        frequencyPenalty: Float = 0,
        presencePenalty: Float = 0,
        dry: Dry? = nil,
        topNSigma: Float? = nil,
        typicalP: Float? = nil,
        xtc: Xtc? = nil,
        mirostat: Mirostat? = nil
    ) {
        self.bannedTokens = bannedTokens
        self.forcedTokens = forcedTokens
        self.noRepeatNgram = noRepeatNgram
        self.logitBias = logitBias
        self.frequencyPenalty = frequencyPenalty
        self.presencePenalty = presencePenalty
        self.dry = dry
        self.topNSigma = topNSigma
        self.typicalP = typicalP
        self.xtc = xtc
        self.mirostat = mirostat
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
            repetitionPenalty: try repetitionPenalty?.toNative(),
            bannedTokens: try bannedTokens.map { try exact($0, "bannedTokens") },
            forcedTokens: try forcedTokens.map { try exact($0, "forcedTokens") },
            noRepeatNgram: try noRepeatNgram.map { try exact($0, from: 1, "noRepeatNgram") },
            logitBias: try logitBias.sorted { $0.key < $1.key }.map {
                NiwakiNative.LogitBias(token: try exact($0.key, "logitBias"), bias: $0.value)
            },
            frequencyPenalty: frequencyPenalty,
            presencePenalty: presencePenalty,
            dry: try dry?.toNative(),
            topNSigma: topNSigma,
            typicalP: typicalP,
            xtc: xtc?.toNative(),
            mirostat: mirostat?.toNative()
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

/// Makes what would go on with a repetition less likely, the more the longer it is.
public struct Dry: Sendable, Hashable {
    /// What the shortest repetition that counts costs.
    public var multiplier: Float

    /// How fast the cost grows with each token more, at least 1.
    public var base: Float

    /// So many tokens may repeat without a cost, at least 1.
    public var allowedLength: Int

    /// Only the last so many tokens of the context are searched; all when `nil`.
    public var lastTokens: Int?

    /// Tokens that no repetition goes across.
    public var breakers: [Int]

    /// Says what repetitions cost; each option is explained where it is declared.
    public init(
        multiplier: Float,
        base: Float = 1.75,
        allowedLength: Int = 2,
        lastTokens: Int? = nil,
        breakers: [Int] = []
    ) {
        self.multiplier = multiplier
        self.base = base
        self.allowedLength = allowedLength
        self.lastTokens = lastTokens
        self.breakers = breakers
    }

    func toNative() throws -> NiwakiNative.Dry {
        NiwakiNative.Dry(
            multiplier: multiplier,
            base: base,
            allowedLength: try exact(allowedLength, from: 1, "allowedLength"),
            lastTokens: try lastTokens.map { try exact($0, "lastTokens") },
            breakers: try breakers.map { try exact($0, "breakers") }
        )
    }
}

/// Leaves out all but the last of the tokens that have `threshold` of the probability, as often as `probability` says.
public struct Xtc: Sendable, Hashable {
    /// How often, 0 to 1.
    public var probability: Float

    /// What makes a token a top choice, 0 to 1.
    public var threshold: Float

    /// Says how often top choices are left out, and what they are.
    public init(probability: Float, threshold: Float = 0.1) {
        self.probability = probability
        self.threshold = threshold
    }

    func toNative() -> NiwakiNative.Xtc {
        NiwakiNative.Xtc(probability: probability, threshold: threshold)
    }
}

/// Mirostat 2: holds the surprise of the text near a goal.
public struct Mirostat: Sendable, Hashable {
    /// The surprise to hold, in bits.
    public var tau: Float

    /// How fast the limit follows.
    public var eta: Float

    /// Says what to hold.
    public init(tau: Float = 5, eta: Float = 0.1) {
        self.tau = tau
        self.eta = eta
    }

    func toNative() -> NiwakiNative.Mirostat {
        NiwakiNative.Mirostat(tau: tau, eta: eta)
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
