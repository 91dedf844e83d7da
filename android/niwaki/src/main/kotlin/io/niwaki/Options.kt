package io.niwaki

import io.niwaki.ffi.ContextEnd as NativeContextEnd
import io.niwaki.ffi.Dry as NativeDry
import io.niwaki.ffi.GenerateOptions as NativeGenerateOptions
import io.niwaki.ffi.KvElement as NativeKvElement
import io.niwaki.ffi.LogitBias as NativeLogitBias
import io.niwaki.ffi.Mirostat as NativeMirostat
import io.niwaki.ffi.OpenOptions as NativeOpenOptions
import io.niwaki.ffi.RepetitionPenalty as NativeRepetitionPenalty
import io.niwaki.ffi.Sampling as NativeSampling
import io.niwaki.ffi.Xtc as NativeXtc
import kotlin.time.Duration

/**
 * How to open a bundle.
 *
 * ```
 * OpenOptions { contextTokens = 4096; kv = KvElement.I8 }
 * ```
 */
public class OpenOptions private constructor(builder: Builder) {
    /** Threads that compute, at most 256; null takes the number of fast cores. */
    public val threads: Int? = builder.threads

    /** Opening fails with [NiwakiException.NotEnoughMemory] when the model needs more. */
    public val memoryLimitBytes: Long? = builder.memoryLimitBytes

    /** Cap on the context; the model's own when null or larger. */
    public val contextTokens: Int? = builder.contextTokens

    /**
     * What the numbers of the context's keys and values are kept as: a smaller one makes room for a longer context; null
     * takes [KvElement.F16], or [KvElement.F32] for a model whose weights all are.
     */
    public val kv: KvElement? = builder.kv

    /**
     * Compares the whole file with its hashes, which reads it once. Turn it off for a file that was verified before and
     * lies where only the app writes. On when nothing is said.
     */
    public val verifyWeights: Boolean = builder.verifyWeights

    /** What [build] sets; nothing else is said. */
    public constructor(build: Builder.() -> Unit = {}) : this(Builder(null).apply(build))

    /** The same but for what [build] sets. */
    public fun copy(build: Builder.() -> Unit): OpenOptions = OpenOptions(Builder(this).apply(build))

    internal fun toNative() = NativeOpenOptions(
        threads = threads?.count("threads", from = 1) ?: 0u,
        memoryLimitBytes = memoryLimitBytes?.count("memoryLimitBytes"),
        contextTokens = contextTokens?.count("contextTokens", from = 1),
        kv = kv?.toNative(),
        verifyWeights = verifyWeights,
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor(from: OpenOptions?) {
        public var threads: Int? = from?.threads
        public var memoryLimitBytes: Long? = from?.memoryLimitBytes
        public var contextTokens: Int? = from?.contextTokens
        public var kv: KvElement? = from?.kv
        public var verifyWeights: Boolean = from?.verifyWeights ?: true
    }
}

/** What a number of a context's keys and values is kept as. */
public enum class KvElement {
    /** 8-bit integers with scales: about half of the memory of [F16], at hardly any loss. */
    I8,

    /** Half precision. */
    F16,

    /** Single precision: twice the memory of [F16]. */
    F32,
    ;

    internal fun toNative(): NativeKvElement = when (this) {
        I8 -> NativeKvElement.I8
        F16 -> NativeKvElement.F16
        F32 -> NativeKvElement.F32
    }
}

/**
 * How to generate.
 *
 * ```
 * GenerateOptions { maxNewTokens = 100; seed = 7 }
 * ```
 */
public class GenerateOptions private constructor(builder: Builder) {
    /** Most tokens to generate; 256 when nothing is said. */
    public val maxNewTokens: Int = builder.maxNewTokens

    /** No token is begun when so much time has passed; the end is then [FinishReason.MaxTime]. */
    public val maxTime: Duration? = builder.maxTime

    /** How the next token is chosen; null takes the model's own defaults. */
    public val sampling: Sampling? = builder.sampling

    /** What the random numbers follow from: the same seed gives the same text on every device. */
    public val seed: Long = builder.seed

    /** Tokens come with [Token.logProbs]: of the chosen one and so many of the best. */
    public val logProbs: Int? = builder.logProbs

    /** Tokens that end the generation, besides the model's own. */
    public val stopTokens: List<Int> = builder.stopTokens.toList()

    /** Texts that end the generation wherever they come up in it. They are not given out. */
    public val stopStrings: List<String> = builder.stopStrings.toList()

    /** What happens when the context has no room left; [ContextEnd.Stop] when nothing is said. */
    public val contextEnd: ContextEnd = builder.contextEnd

    /** What [build] sets; nothing else is said. */
    public constructor(build: Builder.() -> Unit = {}) : this(Builder(null).apply(build))

    /** The same but for what [build] sets. */
    public fun copy(build: Builder.() -> Unit): GenerateOptions = GenerateOptions(Builder(this).apply(build))

    internal fun toNative() = NativeGenerateOptions(
        maxNewTokens = maxNewTokens.count("maxNewTokens"),
        sampling = sampling?.toNative(),
        seed = seed.toULong(),
        maxTimeMs = maxTime?.milliseconds("maxTime"),
        logProbs = logProbs?.count("logProbs"),
        stopTokens = stopTokens.tokens("stopTokens"),
        stopStrings = stopStrings.map { it.wellFormed() },
        contextEnd = contextEnd.toNative(),
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor(from: GenerateOptions?) {
        public var maxNewTokens: Int = from?.maxNewTokens ?: 256
        public var sampling: Sampling? = from?.sampling
        public var seed: Long = from?.seed ?: 0
        public var maxTime: Duration? = from?.maxTime
        public var logProbs: Int? = from?.logProbs
        public var stopTokens: List<Int> = from?.stopTokens.orEmpty()
        public var stopStrings: List<String> = from?.stopStrings.orEmpty()
        public var contextEnd: ContextEnd = from?.contextEnd ?: ContextEnd.Stop
    }
}

/**
 * How the next token is chosen: constraints, penalties, temperature and cuts, then a draw. `docs/decoding.md` explains each.
 *
 * ```
 * Sampling { temperature = 0.7f; minP = 0.05f }
 * ```
 */
public class Sampling private constructor(builder: Builder) {
    /** Softmax temperature; 0 always takes the most likely token. 1 when nothing is said. */
    public val temperature: Float = builder.temperature

    /** Only this many of the most likely tokens are chosen from. */
    public val topK: Int? = builder.topK

    /** Only the most likely tokens that together reach this probability are chosen from. */
    public val topP: Float? = builder.topP

    /** Only tokens with at least this share of the most likely token's probability are chosen from. */
    public val minP: Float? = builder.minP

    /** Makes tokens less likely that the context holds already. */
    public val repetitionPenalty: RepetitionPenalty? = builder.repetitionPenalty

    /** Tokens that never come, whatever else is asked for. */
    public val bannedTokens: List<Int> = builder.bannedTokens.toList()

    /** What is generated begins with these tokens. */
    public val forcedTokens: List<Int> = builder.forcedTokens.toList()

    /** No run of so many tokens comes twice, the prompt included. */
    public val noRepeatNgram: Int? = builder.noRepeatNgram

    /** Added to the logits of tokens; minus infinity bans. */
    public val logitBias: Map<Int, Float> = builder.logitBias.toMap()

    /** Taken from a token's logit for each time it was generated; 0 changes nothing. */
    public val frequencyPenalty: Float = builder.frequencyPenalty

    /** Taken once from the logit of a token that was generated; 0 changes nothing. */
    public val presencePenalty: Float = builder.presencePenalty

    /** Makes what would go on with a repetition less likely, the more the longer it is. */
    public val dry: Dry? = builder.dry

    /**
     * Only tokens whose logit is at most so many standard deviations below the best one's are chosen
     * from.
     */
    public val topNSigma: Float? = builder.topNSigma

    /**
     * Only tokens whose surprise is nearest to the expected one, which together reach this
     * probability, are chosen from.
     */
    public val typicalP: Float? = builder.typicalP

    /** Leaves out the most likely tokens now and then. */
    public val xtc: Xtc? = builder.xtc

    /** Holds the surprise of the text near a goal. */
    public val mirostat: Mirostat? = builder.mirostat

    /** What [build] sets; nothing else is said. */
    public constructor(build: Builder.() -> Unit = {}) : this(Builder(null).apply(build))

    /** The same but for what [build] sets. */
    public fun copy(build: Builder.() -> Unit): Sampling = Sampling(Builder(this).apply(build))

    internal fun toNative() = NativeSampling(
        temperature = temperature,
        topK = topK?.count("topK", from = 1),
        topP = topP,
        minP = minP,
        repetitionPenalty = repetitionPenalty?.toNative(),
        bannedTokens = bannedTokens.tokens("bannedTokens"),
        forcedTokens = forcedTokens.tokens("forcedTokens"),
        noRepeatNgram = noRepeatNgram?.count("noRepeatNgram", from = 1),
        logitBias = logitBias.map { NativeLogitBias(it.key.count("logitBias"), it.value) },
        frequencyPenalty = frequencyPenalty,
        presencePenalty = presencePenalty,
        dry = dry?.toNative(),
        topNSigma = topNSigma,
        typicalP = typicalP,
        xtc = xtc?.toNative(),
        mirostat = mirostat?.toNative(),
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor(from: Sampling?) {
        public var temperature: Float = from?.temperature ?: 1f
        public var topK: Int? = from?.topK
        public var topP: Float? = from?.topP
        public var minP: Float? = from?.minP
        public var repetitionPenalty: RepetitionPenalty? = from?.repetitionPenalty
        public var bannedTokens: List<Int> = from?.bannedTokens.orEmpty()
        public var forcedTokens: List<Int> = from?.forcedTokens.orEmpty()
        public var noRepeatNgram: Int? = from?.noRepeatNgram
        public var logitBias: Map<Int, Float> = from?.logitBias.orEmpty()
        public var frequencyPenalty: Float = from?.frequencyPenalty ?: 0f
        public var presencePenalty: Float = from?.presencePenalty ?: 0f
        public var dry: Dry? = from?.dry
        public var topNSigma: Float? = from?.topNSigma
        public var typicalP: Float? = from?.typicalP
        public var xtc: Xtc? = from?.xtc
        public var mirostat: Mirostat? = from?.mirostat
    }

    public companion object {
        /** Always the most likely token. */
        public val Greedy: Sampling = Sampling { temperature = 0f }
    }
}

/** Makes tokens less likely that the context holds already: `RepetitionPenalty(1.1f) { lastTokens = 64 }`. */
public class RepetitionPenalty private constructor(
    /** 1 changes nothing, more makes repetition rarer. */
    public val factor: Float,
    builder: Builder,
) {
    /** Only the last so many tokens of the context count; all when null. */
    public val lastTokens: Int? = builder.lastTokens

    /** A penalty of [factor], and what [build] sets. */
    public constructor(factor: Float, build: Builder.() -> Unit = {}) : this(factor, Builder().apply(build))

    internal fun toNative() = NativeRepetitionPenalty(factor, lastTokens?.count("lastTokens"))

    /** Sets the options of the same names. */
    public class Builder internal constructor() {
        public var lastTokens: Int? = null
    }
}

/** Makes what would go on with a repetition less likely: `Dry(0.8f) { allowedLength = 3 }`. */
public class Dry private constructor(
    /** What the shortest repetition that counts costs. */
    public val multiplier: Float,
    builder: Builder,
) {
    /** How fast the cost grows with each token more, at least 1; 1.75 when nothing is said. */
    public val base: Float = builder.base

    /** So many tokens may repeat without a cost; 2 when nothing is said. */
    public val allowedLength: Int = builder.allowedLength

    /** Only the last so many tokens of the context are searched; all when null. */
    public val lastTokens: Int? = builder.lastTokens

    /** Tokens that no repetition goes across. */
    public val breakers: List<Int> = builder.breakers.toList()

    /** A penalty of [multiplier], and what [build] sets. */
    public constructor(multiplier: Float, build: Builder.() -> Unit = {}) : this(multiplier, Builder().apply(build))

    internal fun toNative() = NativeDry(
        multiplier = multiplier,
        base = base,
        allowedLength = allowedLength.count("allowedLength", from = 1),
        lastTokens = lastTokens?.count("lastTokens"),
        breakers = breakers.tokens("breakers"),
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor() {
        public var base: Float = 1.75f
        public var allowedLength: Int = 2
        public var lastTokens: Int? = null
        public var breakers: List<Int> = emptyList()
    }
}

/** Leaves out all but the last of the tokens that have [threshold] of the probability, as often as [probability] says. */
public class Xtc(
    /** How often, 0 to 1. */
    public val probability: Float,
    /** What makes a token a top choice, 0 to 1. */
    public val threshold: Float = 0.1f,
) {
    internal fun toNative() = NativeXtc(probability, threshold)
}

/** Mirostat 2: holds the surprise of the text near [tau] bits. */
public class Mirostat(
    /** The surprise to hold, in bits. */
    public val tau: Float = 5f,
    /** How fast the limit follows. */
    public val eta: Float = 0.1f,
) {
    internal fun toNative() = NativeMirostat(tau, eta)
}

private fun List<Int>.tokens(name: String): List<UInt> = map { it.count(name) }

/** What happens when the context has no room left. */
public enum class ContextEnd {
    /** Generate as long as there is room, then end with [FinishReason.ContextFull]. */
    Stop,

    /** Fail with [NiwakiException.ContextFull] at once unless the prompt and all new tokens have room. */
    Refuse,

    /** Forget the oldest and go on: a chat leaves out its oldest turns, a session the older half of its text. */
    ForgetOldest,
    ;

    internal fun toNative(): NativeContextEnd = when (this) {
        Stop -> NativeContextEnd.STOP
        Refuse -> NativeContextEnd.REFUSE
        ForgetOldest -> NativeContextEnd.FORGET_OLDEST
    }
}
