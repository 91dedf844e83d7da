package io.niwaki

import kotlinx.coroutines.flow.Flow
import java.io.Closeable
import io.niwaki.ffi.Session as NativeSession

/**
 * One context of a model: text goes in and is continued. Made by [Engine.session].
 *
 * ```
 * engine.session().use { session ->
 *     session.generate("Once upon a time").collect { print(it.text) }
 *     session.generate(" The next day").collect { print(it.text) }
 * }
 * ```
 */
public class Session internal constructor(private val native: NativeSession) : Closeable {
    private val lifetime = Lifetime("the session")

    /**
     * Adds [text] to the context and generates what follows. Nothing is computed before the flow is collected, and
     * nothing is computed any more once its collection has ended or was cancelled. Half a surrogate pair in [text] is
     * read as U+FFFD.
     *
     * One flow of a session is collected at a time: another fails with [NiwakiException.Busy].
     *
     * @throws NiwakiException from the flow.
     */
    public fun generate(text: String, options: GenerateOptions = GenerateOptions()): Flow<Token> =
        lifetime.tokens { native.generate(text.wellFormed(), options.toNative()) }

    /**
     * Tokens in the context.
     *
     * @throws NiwakiException.Busy while a flow of this session is collected.
     */
    public suspend fun usedTokens(): Int = offMain { lifetime.use { native.lenTokens() }.toInt() }

    /**
     * Forgets everything.
     *
     * @throws NiwakiException.Busy while a flow of this session is collected.
     */
    public suspend fun reset(): Unit = offMain { lifetime.use { native.reset() } }

    /** Frees the context. What is still generating ends within one layer's work, with [NiwakiException.Closed]. */
    override fun close() {
        if (lifetime.end()) native.close()
    }
}
