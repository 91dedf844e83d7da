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
 * @property threads threads that compute; null takes the number of fast cores.
 * @property memoryLimitBytes opening fails with [NiwakiException.NotEnoughMemory] when the model needs more.
 * @property contextTokens cap on the context; the model's own when null or larger.
 * @property kv what the numbers of the context's keys and values are kept as: a smaller one makes room for a longer context;
 *   null takes [KvElement.F16], or [KvElement.F32] for a model whose weights all are.
 * @property verifyWeights compares the whole file with its hashes, which reads it once. Turn it off for a file that
 *   was verified before and lies where only the app writes.
 */
public data class OpenOptions(
    val threads: Int? = null,
    val memoryLimitBytes: Long? = null,
    val contextTokens: Int? = null,
    val kv: KvElement? = null,
    val verifyWeights: Boolean = true,
) {
    init {
        require(threads == null || threads > 0) { "threads $threads is not above 0" }
        require(memoryLimitBytes == null || memoryLimitBytes >= 0) { "memoryLimitBytes $memoryLimitBytes is negative" }
        require(contextTokens == null || contextTokens > 0) { "contextTokens $contextTokens is not above 0" }
    }

    internal fun toNative() = NativeOpenOptions(
        threads = (threads ?: 0).toUInt(),
        memoryLimitBytes = memoryLimitBytes?.toULong(),
        contextTokens = contextTokens?.toUInt(),
        kv = kv?.toNative(),
        verifyWeights = verifyWeights,
    )
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
 * @property maxNewTokens most tokens to generate.
 * @property sampling how the next token is chosen; null takes the model's own defaults.
 * @property seed what the random numbers follow from: the same seed gives the same text on every device.
 * @property stopStrings texts that end the generation wherever they come up in it. They are not given out.
 * @property contextEnd what happens when the context has no room left.
 */
public data class GenerateOptions(
    val maxNewTokens: Int = 256,
    val sampling: Sampling? = null,
    val seed: Long = 0,
    val stopStrings: List<String> = emptyList(),
    val contextEnd: ContextEnd = ContextEnd.Stop,
) {
    init {
        require(maxNewTokens >= 0) { "maxNewTokens $maxNewTokens is negative" }
    }

    internal fun toNative() = NativeGenerateOptions(
        maxNewTokens = maxNewTokens.toUInt(),
        sampling = sampling?.toNative(),
        seed = seed.toULong(),
        stopStrings = stopStrings,
        contextEnd = contextEnd.toNative(),
    )
}

/**
 * How the next token is chosen: repetition penalty, temperature, top-k, top-p and min-p in this order, then a draw.
 *
 * @property temperature softmax temperature; 0 always takes the most likely token.
 * @property topK only this many of the most likely tokens are chosen from.
 * @property topP only the most likely tokens that together reach this probability are chosen from.
 * @property minP only tokens with at least this share of the most likely token's probability are chosen from.
 * @property repetitionPenalty makes tokens less likely that the context holds already.
 */
public data class Sampling(
    val temperature: Float = 1f,
    val topK: Int? = null,
    val topP: Float? = null,
    val minP: Float? = null,
    val repetitionPenalty: RepetitionPenalty? = null,
) {
    init {
        require(topK == null || topK > 0) { "topK $topK is not above 0" }
    }

    internal fun toNative() = NativeSampling(
        temperature = temperature,
        topK = topK?.toUInt(),
        topP = topP,
        minP = minP,
        repetitionPenalty = repetitionPenalty?.let { NativeRepetitionPenalty(it.factor, it.lastTokens?.toUInt()) },
    )

    public companion object {
        /** Always the most likely token. */
        public val Greedy: Sampling = Sampling(temperature = 0f)
    }
}

/**
 * Makes tokens less likely that the context holds already.
 *
 * @property factor 1 changes nothing, more makes repetition rarer.
 * @property lastTokens only the last so many tokens of the context count; all when null.
 */
public data class RepetitionPenalty(val factor: Float, val lastTokens: Int? = null) {
    init {
        require(lastTokens == null || lastTokens >= 0) { "lastTokens $lastTokens is negative" }
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
