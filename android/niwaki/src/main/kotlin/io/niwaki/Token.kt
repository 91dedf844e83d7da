package io.niwaki

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.fold
import io.niwaki.ffi.Finish as NativeFinish
import io.niwaki.ffi.FinishReason as NativeFinishReason
import io.niwaki.ffi.LogProbs as NativeLogProbs

/**
 * One item of a generation's flow.
 *
 * @property text the text that is certain with this token: whole characters, often none.
 * @property id the token's number in the model's vocabulary; null for text that comes after the last token.
 * @property finish how the generation ended: set in the last item of the flow, and only there.
 * @property logProbs how likely the model found the token, where [GenerateOptions.logProbs] asks for that.
 */
public class Token internal constructor(
    public val text: String,
    public val id: Int? = null,
    public val finish: Finish? = null,
    public val logProbs: LogProbs? = null,
) {
    override fun toString(): String = "Token(id=$id, ${text.length} characters, finish=$finish)"
}

/**
 * Natural logarithms of the model's own probabilities, before penalties, temperature and cuts.
 *
 * @property chosen of the chosen token.
 * @property best of the most likely tokens by their ids, best first.
 */
public class LogProbs internal constructor(public val chosen: Float, public val best: Map<Int, Float>) {
    internal constructor(native: NativeLogProbs) : this(
        native.chosen,
        native.best.associate { it.token.toInt() to it.logProb },
    )
}

/**
 * How a generation ended.
 *
 * @property reason why.
 * @property promptTokens tokens of the prompt, all earlier turns included.
 * @property reusedTokens tokens of the prompt that had been computed before.
 * @property newTokens tokens that were generated.
 */
public class Finish internal constructor(
    public val reason: FinishReason,
    public val promptTokens: Int,
    public val reusedTokens: Int,
    public val newTokens: Int,
) {
    internal constructor(native: NativeFinish) : this(
        reason = native.reason.toFinishReason(),
        promptTokens = native.promptTokens.toInt(),
        reusedTokens = native.reusedTokens.toInt(),
        newTokens = native.newTokens.toInt(),
    )

    override fun toString(): String =
        "Finish(reason=$reason, promptTokens=$promptTokens, reusedTokens=$reusedTokens, newTokens=$newTokens)"
}

/**
 * Why a generation ended. One that was cancelled or failed ends its flow with an exception instead. More may come: a `when`
 * over it has an `else`.
 */
public class FinishReason private constructor(private val name: String) {
    override fun toString(): String = name

    public companion object {
        /** As many tokens as were asked for. */
        public val MaxTokens: FinishReason = FinishReason("MaxTokens")

        /** As much time as was given. */
        public val MaxTime: FinishReason = FinishReason("MaxTime")

        /** The model ended its text. */
        public val EndOfText: FinishReason = FinishReason("EndOfText")

        /** One of the stop strings came. */
        public val StopString: FinishReason = FinishReason("StopString")

        /** The context is full. */
        public val ContextFull: FinishReason = FinishReason("ContextFull")

        /** No token was allowed to follow. */
        public val NothingAllowed: FinishReason = FinishReason("NothingAllowed")

        /** A filter ended the text. */
        public val Filtered: FinishReason = FinishReason("Filtered")
    }
}

internal fun NativeFinishReason.toFinishReason(): FinishReason = when (this) {
    NativeFinishReason.MAX_TOKENS -> FinishReason.MaxTokens
    NativeFinishReason.MAX_TIME -> FinishReason.MaxTime
    NativeFinishReason.END_OF_TEXT -> FinishReason.EndOfText
    NativeFinishReason.STOP_STRING -> FinishReason.StopString
    NativeFinishReason.CONTEXT_FULL -> FinishReason.ContextFull
    NativeFinishReason.NOTHING_ALLOWED -> FinishReason.NothingAllowed
    NativeFinishReason.FILTERED -> FinishReason.Filtered
    NativeFinishReason.CANCELLED, NativeFinishReason.FAILED ->
        throw NiwakiException.Internal("a generation that did not fail ended as if it had", null)
}

/** Collects the whole text of a generation. */
public suspend fun Flow<Token>.text(): String =
    fold(StringBuilder()) { text, token -> text.append(token.text) }.toString()
