package io.niwaki

import io.niwaki.ffi.ContextEnd as NativeContextEnd
import io.niwaki.ffi.GenerateOptions as NativeGenerateOptions
import io.niwaki.ffi.KvElement as NativeKvElement
import io.niwaki.ffi.OpenOptions as NativeOpenOptions
import io.niwaki.ffi.RepetitionPenalty as NativeRepetitionPenalty
import io.niwaki.ffi.Sampling as NativeSampling

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

    /** How the next token is chosen; null takes the model's own defaults. */
    public val sampling: Sampling? = builder.sampling

    /** What the random numbers follow from: the same seed gives the same text on every device. */
    public val seed: Long = builder.seed

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
        stopStrings = stopStrings.map { it.wellFormed() },
        contextEnd = contextEnd.toNative(),
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor(from: GenerateOptions?) {
        public var maxNewTokens: Int = from?.maxNewTokens ?: 256
        public var sampling: Sampling? = from?.sampling
        public var seed: Long = from?.seed ?: 0
        public var stopStrings: List<String> = from?.stopStrings.orEmpty()
        public var contextEnd: ContextEnd = from?.contextEnd ?: ContextEnd.Stop
    }
}

/**
 * How the next token is chosen: repetition penalty, temperature, top-k, top-p and min-p in this order, then a draw.
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
    )

    /** Sets the options of the same names. */
    public class Builder internal constructor(from: Sampling?) {
        public var temperature: Float = from?.temperature ?: 1f
        public var topK: Int? = from?.topK
        public var topP: Float? = from?.topP
        public var minP: Float? = from?.minP
        public var repetitionPenalty: RepetitionPenalty? = from?.repetitionPenalty
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
