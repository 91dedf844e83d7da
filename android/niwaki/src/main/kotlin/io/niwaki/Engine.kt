package io.niwaki

import io.niwaki.ffi.BundleSource
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import java.io.Closeable
import java.io.File
import io.niwaki.ffi.Engine as NativeEngine

/**
 * An opened model.
 *
 * ```
 * Engine.open(File(context.filesDir, "model.niwaki")).use { engine ->
 *     engine.generate("Once upon a time").collect { print(it.text) }
 * }
 * ```
 *
 * May be used from any thread, by several sessions and chats at once. The weights stay mapped until the engine and
 * all of its sessions and chats are closed.
 */
public class Engine private constructor(private val native: NativeEngine) : Closeable {
    private val lifetime = Lifetime("the engine")

    /** Name of the model. */
    public val name: String = native.name()

    /** Tokens the context of a session or chat holds. */
    public val contextTokens: Int = native.contextTokens().toInt()

    /** What the engine with one session takes at its peak. */
    public val memoryPlan: MemoryPlan = MemoryPlan(native.memoryPlan())

    /** Whether the model has a chat template, so that [chat] works. */
    public val canChat: Boolean = native.canChat()

    /**
     * Continues [prompt] in a context of its own. Nothing is computed before the flow is collected, and nothing is
     * computed any more once its collection has ended or was cancelled.
     *
     * @throws NiwakiException from the flow.
     */
    public fun generate(prompt: String, options: GenerateOptions = GenerateOptions()): Flow<Token> = flow {
        session().use { emitAll(it.generate(prompt, options)) }
    }

    /**
     * Begins a session with an empty context.
     *
     * @throws NiwakiException
     */
    public suspend fun session(): Session = offMain { Session(lifetime.use { native.session() }) }

    /**
     * Begins a conversation, or goes on with [messages] of an earlier one.
     *
     * ```
     * engine.chat(listOf(Message.system("Answer in one sentence."))).use { chat ->
     *     chat.reply("Why is the sky blue?").collect { print(it.text) }
     * }
     * ```
     *
     * @throws NiwakiException.NoChat when the model has no chat template that works.
     */
    public suspend fun chat(messages: List<Message> = emptyList()): Chat = offMain {
        val chat = lifetime.use { native.chat() }
        if (messages.isNotEmpty()) chat.setMessages(messages.map(Message::toNative))
        Chat(chat)
    }

    /** Calls native code with the open engine. */
    internal inline fun <R> withNative(call: (NativeEngine) -> R): R = lifetime.use { call(native) }

    /** Begins no more sessions and chats; those that are open go on. */
    override fun close() {
        if (lifetime.end()) native.close()
    }

    public companion object {
        /**
         * Opens the bundle that [file] is. Its weights are mapped, not read, but for once to verify them.
         *
         * @throws NiwakiException
         */
        public suspend fun open(file: File, options: OpenOptions = OpenOptions()): Engine =
            open(BundleSource.Path(file.path.wellFormed()), options)

        /**
         * Opens a bundle that is a part of an open file: [length] bytes from [offset], or as many as the bundle
         * has. [fd] may be closed afterwards.
         *
         * @throws NiwakiException
         */
        public suspend fun open(
            fd: Int,
            offset: Long = 0,
            length: Long? = null,
            options: OpenOptions = OpenOptions(),
        ): Engine = open(descriptor(fd, offset, length), options)

        /**
         * States what opening [file] would take, without reading its weights.
         *
         * @throws NiwakiException
         */
        public suspend fun plan(file: File, options: OpenOptions = OpenOptions()): MemoryPlan =
            plan(BundleSource.Path(file.path.wellFormed()), options)

        /**
         * States what opening a part of an open file would take, without reading its weights.
         *
         * @throws NiwakiException
         */
        public suspend fun plan(
            fd: Int,
            offset: Long = 0,
            length: Long? = null,
            options: OpenOptions = OpenOptions(),
        ): MemoryPlan = plan(descriptor(fd, offset, length), options)

        private suspend fun open(source: BundleSource, options: OpenOptions): Engine = offMain {
            Engine(NativeEngine.open(source, options.toNative()))
        }

        private suspend fun plan(source: BundleSource, options: OpenOptions): MemoryPlan = offMain {
            MemoryPlan(io.niwaki.ffi.memoryPlan(source, options.toNative()))
        }

        private fun descriptor(fd: Int, offset: Long, length: Long?): BundleSource {
            return BundleSource.Descriptor(fd, offset.count("offset"), length?.count("length"))
        }
    }
}
