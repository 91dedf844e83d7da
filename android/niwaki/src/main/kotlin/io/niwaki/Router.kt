package io.niwaki

import kotlinx.coroutines.flow.Flow
import java.io.Closeable
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import io.niwaki.ffi.RouteRequest as NativeRequest
import io.niwaki.ffi.RoutedFinish as NativeFinish
import io.niwaki.ffi.RoutedStream as NativeRoutedStream
import io.niwaki.ffi.Router as NativeRouter
import io.niwaki.ffi.RoutingMode as NativeMode
import io.niwaki.ffi.RoutingPolicy as NativePolicy

/**
 * Answers requests with the model on the device or from an endpoint, as its [RoutingPolicy] says, and tells why.
 *
 * ```
 * val policy = RoutingPolicy { maxLocalPromptTokens = 2000 }
 * val endpoint = Endpoint("https://api.example.com", "large-model") { apiKey = { keys.current() } }
 * Router.create(policy, engine, endpoint).use { router ->
 *     router.answer(listOf(Message.user(question))).collect { token ->
 *         print(token.text)
 *         token.finish?.let { println(" (${token.decision.answeredBy})") }
 *     }
 * }
 * ```
 *
 * May be used from any thread. On the device it is one conversation: requests are answered one after the other, and
 * what a prompt has in common with the one before is not computed again. A flow of the device that is collected holds
 * the next one up until it ends, so do not collect one inside the other.
 */
public class Router private constructor(private val native: NativeRouter) : Closeable {
    private val lifetime = Lifetime("the router")

    /**
     * Answers a conversation, whose last of [messages] is usually the user's. Nothing is computed or sent before the
     * flow is collected; cancelling its collector stops the device and closes the connection.
     *
     * With [onDeviceOnly] the request stays on the device whatever the policy says: the endpoint's transport and key
     * are not touched for it.
     *
     * A backend that fails before its first text is followed by the other one where the policy allows that; an answer
     * that has begun is never begun anew.
     *
     * @throws NiwakiException from the flow, with its [NiwakiException.decision].
     */
    public fun answer(
        messages: List<Message>,
        options: GenerateOptions = GenerateOptions(),
        onDeviceOnly: Boolean = false,
    ): Flow<RoutedToken> = lifetime.items {
        NativeAnswer(native.answer(NativeRequest(messages.map(Message::toNative), options.toNative(), onDeviceOnly)))
    }

    /**
     * How long the device is expected to take to the first token of such a prompt, by the speed of the prompts before;
     * null before the first.
     *
     * @throws NiwakiException
     */
    public fun predictFirstToken(promptTokens: Int): Duration? {
        val milliseconds = native {
            lifetime.use { native.predictFirstTokenMs(promptTokens.count("promptTokens").toULong()) }
        }
        return milliseconds?.toLong()?.milliseconds
    }

    /** Frees the context. What still answers ends, with [NiwakiException.Closed]. */
    override fun close() {
        if (lifetime.end()) native.close()
    }

    public companion object {
        /**
         * A router between the model of [engine] and [endpoint]; either may be missing. Nothing is opened or resolved
         * before the first request that goes to the endpoint. The model stays open until the router is closed.
         *
         * @throws NiwakiException.NoChat when the model has no chat template that works.
         * @throws NiwakiException.InvalidArgument for an endpoint that is no URL, or that would send text unencrypted.
         */
        public suspend fun create(
            policy: RoutingPolicy = RoutingPolicy(),
            engine: Engine? = null,
            endpoint: Endpoint? = null,
        ): Router = offMain {
            val create = { model: io.niwaki.ffi.Engine? ->
                NativeRouter(
                    policy.toNative(),
                    model,
                    endpoint?.toNative(),
                    endpoint?.let { NativeKey(it.apiKey) },
                    endpoint?.let { NativeTransport(it.transport) },
                )
            }
            Router(if (engine == null) create(null) else engine.withNative(create))
        }
    }
}

/** A part of an answer. It is not printed with its text. */
public class RoutedToken internal constructor(
    /** The text that came: whole characters, none in the last item. */
    public val text: String,
    /** Who answers, and why. Complete in the last item. */
    public val decision: Decision,
    /** How the answer ended: set in the last item of the flow, and only there. */
    public val finish: RoutedFinish? = null,
) {
    override fun toString(): String = "RoutedToken(${text.length} characters, finish=$finish, decision=$decision)"
}

/**
 * How a routed answer ended.
 *
 * @property reason why.
 * @property cloudReason why, in the endpoint's words: `stop`, `length`, `content_filter`; null on the device.
 * @property cloudPromptTokens tokens of the prompt as the endpoint counted them; null on the device.
 * @property cloudNewTokens tokens of the answer as the endpoint counted them; null on the device.
 */
@ConsistentCopyVisibility
public data class RoutedFinish internal constructor(
    val reason: FinishReason,
    val cloudReason: String?,
    val cloudPromptTokens: Int?,
    val cloudNewTokens: Int?,
) {
    internal constructor(native: NativeFinish) : this(
        reason = native.reason.toFinishReason(),
        cloudReason = native.cloudReason,
        cloudPromptTokens = native.cloudPromptTokens?.toInt(),
        cloudNewTokens = native.cloudNewTokens?.toInt(),
    )
}

/** Which backend is wanted. */
public enum class RoutingMode {
    /** Never leave the device. */
    LocalOnly,

    /** The device as long as the limits allow it, else the endpoint. */
    PreferLocal,

    /** The endpoint, and the device when the endpoint fails. */
    PreferCloud,

    /** Never compute on the device. */
    CloudOnly,
    ;

    internal fun toNative(): NativeMode = when (this) {
        LocalOnly -> NativeMode.LOCAL_ONLY
        PreferLocal -> NativeMode.PREFER_LOCAL
        PreferCloud -> NativeMode.PREFER_CLOUD
        CloudOnly -> NativeMode.CLOUD_ONLY
    }
}

internal fun NativeMode.toRoutingMode(): RoutingMode = when (this) {
    NativeMode.LOCAL_ONLY -> RoutingMode.LocalOnly
    NativeMode.PREFER_LOCAL -> RoutingMode.PreferLocal
    NativeMode.PREFER_CLOUD -> RoutingMode.PreferCloud
    NativeMode.CLOUD_ONLY -> RoutingMode.CloudOnly
}

/**
 * What a [Router] goes by. The context of the model is a limit of its own: longer prompts go to the endpoint.
 *
 * ```
 * RoutingPolicy(RoutingMode.PreferLocal) { maxLocalPromptTokens = 2000 }
 * ```
 */
public class RoutingPolicy private constructor(
    /** Which backend is wanted. */
    public val mode: RoutingMode,
    builder: Builder,
) {
    /** Longer prompts go to the endpoint, and to it alone. */
    public val maxLocalPromptTokens: Int? = builder.maxLocalPromptTokens

    /**
     * Where the device would take longer to its first token, by the speed it was seen to have, the endpoint is asked first;
     * the device takes over when it fails.
     */
    public val maxFirstToken: Duration? = builder.maxFirstToken

    /** A policy of [mode], and what [build] sets. */
    public constructor(mode: RoutingMode = RoutingMode.PreferLocal, build: Builder.() -> Unit = {}) :
        this(mode, Builder().apply(build))

    internal fun toNative() = NativePolicy(
        mode = mode.toNative(),
        maxLocalPromptTokens = maxLocalPromptTokens?.count("maxLocalPromptTokens")?.toULong(),
        maxFirstTokenMs = maxFirstToken?.milliseconds("maxFirstToken"),
    )

    /** Sets the limits of the same names. */
    public class Builder internal constructor() {
        public var maxLocalPromptTokens: Int? = null
        public var maxFirstToken: Duration? = null
    }
}

private class NativeAnswer(private val native: NativeRoutedStream) : NativeStream<RoutedToken> {
    private var decision: Decision? = null

    override fun next(): RoutedToken? =
        try {
            native { native.next() }?.let { text -> begun()?.let { RoutedToken(text, it) } }
        } catch (e: NiwakiException) {
            e.decision = native.decision()?.let(::Decision)
            throw e
        }

    override fun cancel() = native.cancel()

    override fun last(): RoutedToken? {
        val decision = native.decision() ?: return null
        return native.finish()?.let { RoutedToken("", Decision(decision), RoutedFinish(it)) }
    }

    override fun close() = native.close()

    /** The record as it was with the first text. */
    private fun begun(): Decision? {
        if (decision == null) decision = native.decision()?.let(::Decision)
        return decision
    }
}
